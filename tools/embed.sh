#!/bin/sh
# Turns recipe files into one C table: kvb_recipe_texts[] of {name, JSON text}, sorted by name.
set -eu
echo '#include "calib/recipe.h"'
echo 'const kvb_recipe_text kvb_recipe_texts[] = {'
for file in "$@"; do
    name=$(basename "$file" .json)
    printf '    {"%s",\n' "$name"
    sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/     "/' -e 's/$/\\n"/' "$file"
    echo '    },'
done
echo '};'
echo "const size_t kvb_recipe_text_count = sizeof kvb_recipe_texts / sizeof *kvb_recipe_texts;"
