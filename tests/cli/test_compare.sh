#!/bin/sh
# Recipes at several rates in one table: its numbers are those of calibrate and eval, and nothing is done twice.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 120 1
words "$tmp/test.txt" 60 2
model="--model $tmp/tiny.gguf --ctx 64"
calib="--calib-text $tmp/train.txt --calib-chunks 10"
score="$model --text $tmp/test.txt --chunks 3"
table=$work/table

said() { # said COUNT PATTERN: so many lines of what the last command said
    if [ "$(grep -c "$2" "$err")" -eq "$1" ]; then ok "$1 times: $2"; else fail "$1 times: $2" "$(grep -c "$2" "$err") times"; fi
}

expect "compare" 0 '^\| antkv \| 1 \| [0-9.]+ \| .* anchors 1 % by exact-k, window 32' \
    "$kvbook" compare $score $calib --recipes antkv,best --bits 4,1 -o "$table.json"
json "the table" "$table.json" 'd["schema"] == 1 and d["chunks"] == 3 and d["targets"] == 3 * 63 and d["calibration"]["chunks"] == 10
    and [(r["recipe"], r["bits"]) for r in d["rows"]] == [("antkv", 4), ("antkv", 1), ("best", 4), ("best", 1)]
    and all(r["refused"] is None and r["nll_delta_error"] > 0 and r["source"] for r in d["rows"])'
if cmp -s "$table.md" "$out"; then ok "stdout is the Markdown"; else fail "stdout is the Markdown" "they differ"; fi
expect "the picture is XML" 0 '^4 2$' python3 -c 'import sys, xml.etree.ElementTree as e
ns = "{http://www.w3.org/2000/svg}"
r = e.parse(sys.argv[1]).getroot()
print(len(list(r.iter(ns + "title"))), len(list(r.iter(ns + "polyline"))))' "$table.svg"
expect "the picture has a dark side" 0 'prefers-color-scheme:dark' cat "$table.svg"

# The same by hand.
for row in antkv-4 best-1; do
    "$kvbook" calibrate $model --text "$tmp/train.txt" --chunks 10 --recipe "${row%-*}" --bits "${row#*-}" -q -o "$tmp/$row.kvb" 2>"$err"
    "$kvbook" eval $score --book "$tmp/$row.kvb" --json >"$tmp/$row.json" 2>"$err"
    json "$row is what calibrate and eval say" "$tmp/$row.json" "(lambda t, r: all(abs(d[k] - r[k]) < 1e-9 * (1 + abs(d[k])) for k in
        ('ppl', 'kl', 'top1', 'nll_delta', 'nll_delta_error', 'bits_nominal', 'bits_effective', 'bits_effective_2k', 'bits_effective_32k',
        'bits_effective_128k')) and abs(t['ppl_exact'] - d['ppl_exact']) < 1e-9 * d['ppl_exact'] and r['policy']['window'] ==
        d['policy']['window'])(*(lambda t: (t, next(r for r in t['rows'] if r['recipe'] + '-%g' % r['bits'] == '$row')))(json.load(open('$table.json'))))"
done
set -- "$table.books"/antkv-4-*.kvb
same "the book of antkv-4 is that of calibrate" "$1" "$tmp/antkv-4.kvb"

# Recipes that learn nothing take no text for it: all of the text is scored.
expect "compare without a text to calibrate on" 0 'Books that learn nothing' "$kvbook" compare $model --text "$tmp/test.txt" --recipes kivi,turboquant --bits 4 \
    -o "$work/free.json"
"$kvbook" eval $model --text "$tmp/test.txt" --recipe kivi --bits 4 --json -q >"$tmp/free.json" 2>"$err"
json "it scores the whole text" "$work/free.json" "d['calibration'] is None and d['chunks'] == json.load(open('$tmp/free.json'))['chunks'] and
    abs(d['rows'][0]['ppl'] / json.load(open('$tmp/free.json'))['ppl'] - 1) < 1e-9"
expect "one that learns takes its share" 0 'Books from' "$kvbook" compare $model --text "$tmp/test.txt" --recipes kivi,kvquant --bits 4 -o "$work/share.json"
json "half of the text is scored" "$work/share.json" "d['chunks'] == (json.load(open('$work/free.json'))['chunks'] + 1) // 2"

# Again: nothing is left to do, and the table is the same.
cp "$table.json" "$tmp/first.json"
ls -l --time-style=full-iso "$table.books" >"$tmp/before"
expect "again" 0 'books: 4 are there, 0 to make' "$kvbook" compare $score $calib --recipes antkv,best --bits 4,1 -o "$table.json"
same "again, the same table" "$table.json" "$tmp/first.json"
ls -l --time-style=full-iso "$table.books" >"$tmp/after"
same "again, nothing is written to the folder" "$tmp/before" "$tmp/after"
if grep -q 'to score' "$err"; then fail "again, nothing is scored" "it is"; else ok "again, nothing is scored"; fi

# Interrupted: a book and the scores of the last chunk are missing.
rm "$1"
python3 - "$table.books/scores.json" <<'PY'
import json, sys
d = json.load(open(sys.argv[1]))
d["scores"] = dict(list(d["scores"].items())[:10]) # five caches of two chunks
json.dump(d, open(sys.argv[1], "w"))
PY
expect "what is missing is made" 0 'books: 3 are there, 1 to make' "$kvbook" compare $score $calib --recipes antkv,best --bits 4,1 -o "$table.json"
said 1 'chunk . of 3: 4 caches to score'
same "resumed, the same table" "$table.json" "$tmp/first.json"
set -- "$table.books"/best-4-*.kvb
head -c 1000 "$tmp/antkv-4.kvb" >"$1"
expect "a broken book is made again" 0 'warning: .*; it is made again' "$kvbook" compare $score $calib --recipes antkv,best --bits 4,1 -o "$table.json"
same "made again, the same table" "$table.json" "$tmp/first.json"

# The whole run stopped by a signal, then gone on with.
"$kvbook" compare $score $calib --recipes antkv,best --bits 4,1 -o "$work/stopped.json" >"$out" 2>"$err" &
pid=$!
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ -d "$work/stopped.books" ] && [ -n "$(ls "$work/stopped.books")" ] && break
    sleep 0.1
done
kill -INT "$pid" 2>/dev/null
wait "$pid"; got=$?
if [ "$got" -eq 130 ] && [ ! -e "$work/stopped.json" ]; then ok "interrupted"
elif [ "$got" -eq 0 ]; then skip "interrupted" "the run was quicker"
else fail "interrupted" "exit code $got"; fi
expect "gone on with" 0 . "$kvbook" compare $score $calib --recipes antkv,best --bits 4,1 -o "$work/stopped.json"
same "gone on with, the same table" "$work/stopped.json" "$tmp/first.json"

# More of everything costs what is new only; another policy scores the same books; another seed makes others.
expect "more chunks and recipes" 0 'books: 4 are there, 2 to make' "$kvbook" compare $model --text "$tmp/test.txt" --chunks 4 $calib \
    --recipes cq,antkv,best --bits 4,1 -o "$table.json"
said 3 'chunk . of 4: 2 caches to score'
said 1 'chunk . of 4: 6 caches to score'
expect "another policy" 0 'books: 4 are there, 0 to make' "$kvbook" compare $score $calib --recipes antkv,best --bits 4,1 --anchors 0 --window 0 \
    --sinks 0 --exact half -o "$table.json"
json "the policy is in the rows" "$table.json" 'all(r["policy"]["window"] == 0 for r in d["rows"])
    and all(a["ppl"] != b["ppl"] for a, b in zip(d["rows"], json.load(open("'"$tmp/first.json"'"))["rows"]))'
expect "another seed" 0 'books: 0 are there, 1 to make' "$kvbook" compare $score $calib --recipes cq --bits 4 --seed 2 -o "$table.json"

# Rates that a recipe has no form for, and text shared out.
expect "a rate without a form" 0 '^\| cq \| 1\.3 \| - .*no usual shape for 1\.3 bits' "$kvbook" compare $score $calib --recipes cq,best --bits 1.3,4 -o "$table.json"
json "it says why" "$table.json" 'd["rows"][0]["refused"] and "ppl" not in d["rows"][0] and d["rows"][1]["refused"] is None'
expect "one text" 0 . "$kvbook" compare $model --text "$tmp/train.txt" --recipes cq --bits 4 -o "$table.json"
json "one text is scored and calibrated on by halves" "$table.json" 'd["skip"] == 0 and d["calibration"]["skip"] == d["chunks"]
    and 0 <= d["chunks"] - d["calibration"]["chunks"] <= 1'
expect "a recipe's own file" 0 '^\| mine &lt;x> \\\| \| 4 \|' sh -c "$kvbook recipes show cq | sed 's/\"cq\"/\"mine <x> |\"/' >$tmp/mine.json &&
    $kvbook compare $score $calib --recipes $tmp/mine.json --bits 4 -o $table.json"
expect "names are no markup" 0 'mine &lt;x&gt; \|' cat "$table.svg"

rm -rf "$work"; mkdir "$work"
run="$kvbook compare $score $calib --bits 4"
refuse "an unknown recipe" 2 'unknown recipe "antkw"; did you mean "antkv"' $run --recipes cq,antkw -o "$table.json"
refuse "a recipe twice" 2 '"cq" stands there twice' $run --recipes cq,cq -o "$table.json"
"$kvbook" recipes show cq >"$tmp/cq.json"
refuse "two of a name" 2 'two of them are called "cq"' $run --recipes "cq,$tmp/cq.json" -o "$table.json"
refuse "an empty name" 2 'empty' $run --recipes cq,,antkv -o "$table.json"
refuse "no number" 2 'bits: found "x"' "$kvbook" compare $score $calib --recipes cq --bits 4,x -o "$table.json"
refuse "a rate twice" 2 '4 stands there twice' "$kvbook" compare $score $calib --recipes cq --bits 4,4.0 -o "$table.json"
refuse "no rate that anything has" 2 'no recipe can be had at any of these rates; the first, cq at 1\.3' \
    "$kvbook" compare $score $calib --recipes cq --bits 1.3 -o "$table.json"
refuse "a broken recipe" 3 'unknown key' sh -c "sed 's/keys/kyes/' $tmp/cq.json >$tmp/broken.json; $run --recipes $tmp/broken.json -o $table.json"
refuse "fine codes of a recipe without" 2 'exact: fine' $run --recipes cq --exact fine -o "$table.json"
refuse "another ending" 2 'ends in \.json' $run --recipes cq -o "$table.txt"
refuse "no folder" 4 . $run --recipes cq -o "$work/none/table.json"
refuse "onto a text" 2 'is also the input' sh -c "cp $tmp/test.txt $tmp/t.md; $run --text $tmp/t.md --recipes cq -o $tmp/t.json"
refuse "nothing left to calibrate on" 2 'none is left to calibrate on' "$kvbook" compare $model --text "$tmp/train.txt" --chunks 999 --recipes cq --bits 4 \
    -o "$table.json"
: >"$table.books"
refuse "the folder is a file" 4 'is no folder' $run --recipes cq -o "$table.json"
rm "$table.books"; mkdir "$table.books"; echo '{"schema": 1, "scores": {"a": [1]}}' >"$table.books/scores.json"
expect "scores that are none" 3 'scores\.json: .*remove the file' $run --recipes cq -o "$table.json"
done_testing
