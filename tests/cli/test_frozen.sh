#!/bin/sh
# Files of frozen versions of the formats: nobody changed them, this version reads them as what they were, and so do the independent decoders.
. "$(dirname "$0")/lib.sh"

for folder in tests/golden/v*; do
    version=$(basename "$folder")
    expect "$version: its files are as they were frozen" 0 ': OK' sh -c "cd $folder && sha256sum -c SHA256SUMS"
    expect "$version: the files that must be refused too" 0 ': OK' sh -c "cd tests/golden-errors && sha256sum --quiet -c ../golden/$version/ERRORS.SHA256SUMS && echo all: OK"
    [ "$(ls "$folder" | grep -c '\.kv.$')" = "$(wc -l <"$folder/SHA256SUMS")" ] && ok "$version: none is missing in the sums" ||
        fail "$version: none is missing in the sums" "$(ls "$folder")"
    while read -r name id; do
        "$kvbook" info --json "$folder/$name" >"$tmp/info.json" 2>"$err" # not verify: made-up codebooks are none to use
        json "$version/$name: its identity" "$tmp/info.json" "d['id'] == '$id'"
        expect "$version/$name: spec/kvb_decode.py" 0 . python3 spec/kvb_decode.py --tables "$folder/$name"
    done <"$folder/IDENTITIES"
    for file in "$folder"/*.kvp; do
        expect "$version/$(basename "$file"): verify" 0 . "$kvbook" verify "$file"
        expect "$version/$(basename "$file"): spec/kvp_decode.py" 0 . python3 spec/kvp_decode.py "$file"
    done
    for file in "$folder"/*.kvc; do
        for recipe in 'cq --k 4x4 --v 4x4' 'antkv --k 4x4 --v 4x4' 'kivi --bits 2'; do
            expect "$version/$(basename "$file"): train --recipe $recipe" 0 wrote "$kvbook" train "$file" --recipe $recipe -o "$work/x.kvb"
        done
    done
done
done_testing
