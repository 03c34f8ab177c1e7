#!/bin/sh
# Methods that code numbers one by one (kivi, asymkv, turboquant, kvquant, skvq, ott) from the command line: made, shown, scored at once and token by
# token, and refused where a recipe contradicts itself.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 120 1
words "$tmp/test.txt" 60 2
model="--model $tmp/tiny.gguf"
input="$model --text $tmp/train.txt --ctx 128 --chunks 2"
score="$model --text $tmp/test.txt --ctx 128 --chunks 2"

same_number() { python3 -c "import json, sys; a, b = (json.load(open(f)) for f in sys.argv[2:]); sys.exit(a[sys.argv[1]] != b[sys.argv[1]])" "$@"; }

for name in kivi asymkv turboquant innerq kv-adaquant kvquant skvq ott; do
    expect "calibrate $name" 0 "wrote .* recipe $name" "$kvbook" calibrate $input --recipe $name --bits 2 -o "$work/$name.kvb"
    expect "verify $name" 0 ' 0 failed' "$kvbook" verify "$work/$name.kvb" $model
    expect "spec/kvb_decode.py reads $name" 0 '"scaling": \{' python3 spec/kvb_decode.py --tables "$work/$name.kvb"
    expect "eval $name token by token" 0 'attention given the same inputs by' "$kvbook" eval $score --book "$work/$name.kvb" --decode 64 --window 16
    expect "generate with $name" 0 . "$kvbook" generate $model --book "$work/$name.kvb" --prompt 'a b c' -n 80
    expect "report of $name" 0 . "$kvbook" report "$work/$name.kvb" -o "$work/$name.html"
done
expect "nothing is trained" 0 'no codebooks to train: numbers are coded one by one' "$kvbook" calibrate $input --recipe kivi --bits 4 -o "$work/k4.kvb"
# Nothing is learned, so no text is asked for; and nothing of the text that stands in for one is in the numbers.
for name in kivi turboquant; do
    "$kvbook" eval $score --book "$work/$name.kvb" --json -q >"$tmp/book.json" 2>"$err"
    expect "eval --recipe $name without a text to calibrate on" 0 '"ppl"' "$kvbook" eval $score --recipe $name --bits 2 --json -q
    same_number ppl "$tmp/book.json" "$out" && ok "eval --recipe $name: the score of its book" || fail "eval --recipe $name: the score of its book" "differs"
done
refuse "eval --recipe kvquant without a text" 2 'kvquant needs calibration: give --calib-text' "$kvbook" eval $score --recipe kvquant --bits 2
refuse "eval --recipe kivi --tune without a text" 2 'kivi needs calibration' "$kvbook" eval $score --recipe kivi --bits 2 --tune 1
refuse "eval --recipe skvq without a text" 2 'skvq needs calibration: give --calib-text' "$kvbook" eval $score --recipe skvq --bits 2
expect "info of lists" 0 'lists of channels' "$kvbook" info "$work/skvq.kvb"
"$kvbook" info --json "$work/skvq.kvb" >"$tmp/info.json"
json "what clips do is on record" "$tmp/info.json" 'all(0 < c["output_error"] <= c["output_error_before"] for c in d["meta"]["training"]["clips"].values())'
expect "capture --queries" 0 . "$kvbook" capture $input --queries --sensitivity 0 -o "$work/q.kvc"
expect "train with clips by search" 0 'clips of keys: error of attention.s output' "$kvbook" train "$work/q.kvc" --recipe skvq --bits 2 -o "$work/q.kvb"
"$kvbook" capture $input --sensitivity 0 -q -o "$work/none.kvc" 2>"$err"
refuse "a capture without queries" 6 'no layers.0.queries.*--queries' "$kvbook" train "$work/none.kvc" --recipe skvq --bits 2 -o "$work/x.kvb"
"$kvbook" capture $model --text "$tmp/train.txt" --ctx 4 --chunks 2 --queries --sensitivity 0 -q -o "$work/short.kvc" 2>"$err"
refuse "chunks of sinks alone" 1 "all are sinks of the recipe" "$kvbook" train "$work/short.kvc" --recipe skvq --bits 1 -o "$work/x.kvb"
# The keys of a scale go together as they like: kivi with scales of a byte and clips by search.
"$kvbook" recipes show kivi | sed 's/"form": "range"/"form": "range", "store": "fp8", "clip": "search"/g; s/"kivi"/"kivi8"/' >"$tmp/kivi8.json"
expect "kivi with clips and e4m3 scales" 0 'clips of values' "$kvbook" calibrate $input --recipe "$tmp/kivi8.json" --bits 2 -o "$work/kivi8.kvb"
expect "verify it" 0 ' 0 failed' "$kvbook" verify "$work/kivi8.kvb" $model
expect "eval it token by token" 0 'attention given the same inputs by' "$kvbook" eval $score --book "$work/kivi8.kvb" --decode 64 --window 16
for name in kivi kivi8; do "$kvbook" eval $score --book "$work/$name.kvb" --window 0 --json -q >"$tmp/$name.json" 2>"$err"; done
json "half the bytes of scales" "$tmp/kivi8.json" "d['bits_effective'] < json.load(open('$tmp/kivi.json'))['bits_effective']"
expect "a checkpoint" 0 . "$kvbook" calibrate $input --recipe skvq --bits 2 --checkpoint "$work/ck" -o "$work/kept.kvb"
same "the same bytes with a checkpoint" "$work/skvq.kvb" "$work/kept.kvb"
"$kvbook" recipes show ott >"$tmp/ott.json"
sed 's/"ott"/"ott0"/; s/"layer": 2/"layer": 0/' "$tmp/ott.json" >"$tmp/ott0.json"
expect "pools in all layers" 0 . "$kvbook" calibrate $input --recipe "$tmp/ott0.json" --bits 2 -o "$work/ott0.kvb"
expect "info of pools" 0 'tokens of a channel, pools of' "$kvbook" info "$work/ott0.kvb" # the tiny model has the two layers in which ott has none
expect "eval pools token by token" 0 'attention given the same inputs by' "$kvbook" eval $score --book "$work/ott0.kvb" --decode 64 --window 16
for name in ott0 kivi; do "$kvbook" eval $score --book "$work/$name.kvb" --window 0 --json -q >"$tmp/$name.json" 2>"$err"; done
json "pools take bytes" "$tmp/ott0.json" "d['bits_effective'] > json.load(open('$tmp/kivi.json'))['bits_effective']"
json "and lose less" "$tmp/ott0.json" "d['kl'] < json.load(open('$tmp/kivi.json'))['kl']"
sed 's/"ott"/"ott1"/; s/"layer": 2/"layer": 1/' "$tmp/ott.json" >"$tmp/ott1.json"
for name in ott1 ott; do "$kvbook" eval $score --recipe "$tmp/$name.json" --bits 2 --window 0 --json -q >"$tmp/$name-bits.json" 2>"$err"; done
json "pools from the second of two layers on take half" "$tmp/ott1-bits.json" \
    "(lambda b: abs(d['bits_effective'] - (b('ott0') + b('kivi')) / 2) < 1e-9)(lambda n: json.load(open('$tmp/' + n + '.json'))['bits_effective'])"
json "and those from the third on nothing" "$tmp/ott-bits.json" \
    "d['bits_effective'] == json.load(open('$tmp/kivi.json'))['bits_effective'] and d['kl'] == json.load(open('$tmp/kivi.json'))['kl']"
sed 's/"ott"/"ott0"/; s/, "layer": 2//' "$tmp/ott.json" >"$tmp/all-layers.json"
expect "pools where no layer is named" 0 . "$kvbook" calibrate $input --recipe "$tmp/all-layers.json" --bits 2 -o "$work/all-layers.kvb"
"$kvbook" eval $score --book "$work/all-layers.kvb" --window 0 --json -q >"$tmp/all-layers-score.json" 2>"$err"
json "are in all layers" "$tmp/all-layers-score.json" \
    "all(d[k] == json.load(open('$tmp/ott0.json'))[k] for k in ('bits_effective', 'kl', 'ppl'))"
pool_refused() { # pool_refused SED PATTERN: a change to the recipe, and what is said of it
    sed "$1" "$tmp/ott.json" >"$tmp/bad.json"
    refuse "recipe of a pool: $2" 3 "$2" "$kvbook" eval $score --recipe "$tmp/bad.json" --bits 2
}
pool_refused 's/"tokens": 3/"tokens": 32/' 'pool.tokens: found 32'
pool_refused 's/"axis": "channel"/"axis": "token"/' 'keys.scale.pool: tokens widen'
pool_refused 's/"spill": 32/"spill": 0/' pool.spill
pool_refused 's/"spill"/"spil"/' spill
expect "info of fixed scales" 0 'keys 2-bit numbers, a fixed scale of a channel, 1 outliers' "$kvbook" info "$work/kvquant.kvb"
expect "info" 0 'keys 2-bit numbers, a scale for 32 tokens of a channel' "$kvbook" info "$work/kivi.kvb"
"$kvbook" info --json "$work/asymkv.kvb" >"$tmp/info.json"
json "bits by layer" "$tmp/info.json" 'd["keys"]["bits"] == 1.5 and d["keys"]["bits_most"] == 2 and d["values"]["bits"] == 1'
for w in 0 16; do
    for bits in 2 4; do
        book=$work/kivi.kvb; [ $bits = 2 ] || book=$work/k4.kvb
        "$kvbook" eval $score --book "$book" --window $w --json >"$tmp/e$bits.json" 2>"$err"
    done
    python3 -c 'import json, sys; a, b = (json.load(open(p))["kl"] for p in sys.argv[1:]); sys.exit(not a > b > 0)' "$tmp/e2.json" \
        "$tmp/e4.json" && ok "4 bits are nearer to exact than 2, window $w" || fail "4 bits are nearer to exact than 2, window $w" "they are not"
done

recipe() { printf '{"schema": 1, "name": "mine", %s}' "$1" >"$tmp/mine.json"; }
bad() { # bad NAME MESSAGE MEMBERS
    recipe "$3"
    refuse "$1" 3 "$2" "$kvbook" calibrate $input --recipe "$tmp/mine.json" --bits 2 -o "$work/x.kvb"
}
bad "an unknown axis" 'keys.scale.axis: unknown value "channels"; did you mean "channel"' '"keys": {"scale": {"axis": "channels"}}'
bad "an unknown member" 'unknown key "grup"; did you mean "group"' '"keys": {"scale": {"grup": 32}}'
bad "a group of 3 tokens" 'keys.scale.group: found 3; along channels expected a power of two' '"keys": {"scale": {"axis": "channel", "group": 3}}'
bad "normal levels in a range" 'expected "form": "rms"' '"values": {"scale": {"levels": "normal"}}'
bad "scales and weights" 'contradicts weights' '"keys": {"weights": "exact-k", "scale": {}}'
bad "scales and fine codes" 'contradicts "fine"' '"keys": {"fine": "2x256", "scale": {}}, "values": {"fine": "2x256"}'
bad "trained levels of tokens that share scales" 'keys.scale.levels: "trained" levels lie between -1 and 1' '"keys": {"scale": {"axis": "channel", "levels": "trained"}}'
bad "a group of fixed scales" 'no "group"' '"keys": {"scale": {"axis": "channel", "form": "fixed", "group": 32}}'
bad "fixed scales along a token" 'expected "axis": "channel"' '"keys": {"scale": {"axis": "token", "form": "fixed"}}'
bad "outliers of tokens that share scales" 'scale.outliers: expected "form": "fixed"' '"keys": {"scale": {"axis": "channel", "outliers": 0.01}}'
bad "more outliers than half" 'keys.scale.outliers: expected a number from 0 to 0.5' '"keys": {"scale": {"form": "fixed", "axis": "channel", "outliers": 0.6}}'
bad "anchors that share scales" 'cannot stay behind' '"keys": {"scale": {"axis": "channel"}}, "cache": {"anchors": 0.01, "window": 8}'
bad "groups and a group" 'keys.scale.groups: contradicts "group"' '"keys": {"scale": {"group": 8, "groups": {"by": "range"}}}'
bad "an unknown way of grouping" 'keys.scale.groups.by: unknown value "rage"; did you mean "range"' '"keys": {"scale": {"groups": {"by": "rage"}}}'
bad "an unknown member of groups" 'unknown key "count"; did you mean' '"keys": {"scale": {"groups": {"count": 2}}}'
bad "groups of no channels" 'keys.scale.groups.size: expected a whole number from 1' '"keys": {"scale": {"groups": {"size": 0}}}'
bad "lists along channels" 'keys.scale.groups: expected "axis": "token"' '"keys": {"scale": {"axis": "channel", "groups": {"by": "range"}}}'
bad "lists with outliers" 'keys.scale.groups: expected "axis": "token", no outliers' '"keys": {"scale": {"groups": {"by": "range"}, "outliers": 0.01}}'
bad "an unknown clip" 'keys.scale.clip: unknown value "serch"; did you mean "search"' '"keys": {"scale": {"clip": "serch"}}'
bad "a clip that is too large" 'keys.scale.clip: expected a number' '"keys": {"scale": {"clip": 17}}'
bad "clips of fixed scales" '"search" is of scales found while coding' '"keys": {"scale": {"axis": "channel", "form": "fixed", "clip": "search"}}'
bad "an unknown store" 'keys.scale.store: unknown value "fp4"; did you mean "fp8"' '"keys": {"scale": {"store": "fp4"}}'
bad "fixed scales of a byte" 'keys.scale.store: "fixed" scales are the book' '"keys": {"scale": {"axis": "channel", "form": "fixed", "store": "fp8"}}'
bad "then without bits" 'expected both "layer" and "bits"' '"keys": {"scale": {"then": {"layer": 2}}}'
refuse "1.5 bits" 2 'expected a whole number from 1 to 8' "$kvbook" calibrate $input --recipe kivi --bits 1.5 -o "$work/x.kvb"
refuse "a shape of 8 channels" 2 'expected 1xK' "$kvbook" calibrate $input --recipe kivi --bits 2 --k 8x256 -o "$work/x.kvb"
refuse "bits dealt out" 2 'no codebooks to deal bits out over' "$kvbook" calibrate $input --recipe kivi --allocate --bits 2 -o "$work/x.kvb"
recipe '"values": {"scale": {"group": 7}}, "keys": {"shape": "4x4"}'
recipe '"values": {"scale": {"group": 2, "outliers": 0.4}}, "keys": {"shape": "4x4"}'
refuse "more outliers than a group has" 2 'leaves no number' "$kvbook" calibrate $input --recipe "$tmp/mine.json" --v 1x4 -o "$work/x.kvb"
recipe '"values": {"scale": {"group": 7}}, "keys": {"shape": "4x4"}'
refuse "a group that does not divide a head" 2 'does not divide a head' "$kvbook" calibrate $input --recipe "$tmp/mine.json" --v 1x4 -o "$work/x.kvb"
refuse "tuning" 2 'no centroids to tune' "$kvbook" tune "$work/kivi.kvb" $input -o "$work/x.kvb"
refuse "anchors over scales of several tokens" 2 'tokens share scales' "$kvbook" eval $score --book "$work/kivi.kvb" --anchors '1%'
echo 'a b c d' >"$tmp/prompt.txt"
for name in kivi ott0; do
    refuse "packing with $name" 2 'which a file of caches cannot hold yet: use a book' "$kvbook" pack $model --book "$work/$name.kvb" --text "$tmp/prompt.txt" -o "$work/x.kvp"
    [ ! -e "$work/x.kvp" ] && ok "nothing is left of $name" || fail "nothing is left of $name" "x.kvp is there"
done
done_testing
