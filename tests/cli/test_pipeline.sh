#!/bin/sh
# From a model and text to a book, its score, a report and generated text: end to end on tiny models.
. "$(dirname "$0")/lib.sh"

tiny_model "$tmp/tiny.gguf" 1
words "$tmp/train.txt" 120 1
words "$tmp/test.txt" 40 2
model="--model $tmp/tiny.gguf"
input="$model --text $tmp/train.txt --ctx 128 --chunks 8"
recipe="--recipe antkv --k 4x16 --v 4x16"

expect "calibrate" 0 'wrote .*1 bits, recipe antkv' "$kvbook" calibrate $input $recipe -o "$work/a.kvb"
cp "$err" "$tmp/said"
if [ -s "$out" ]; then fail "calibrate is silent on stdout" "printed data"; else ok "calibrate is silent on stdout"; fi
expect "one line for each finished step" 0 '^capture: 8 in ' cat "$tmp/said"
expect "calibrate -q" 0 '^0$' sh -c "'$kvbook' calibrate $input $recipe -q -o '$work/q.kvb' 2>&1 | wc -c"
same "the same bytes again" "$work/a.kvb" "$work/q.kvb"
expect "calibrate --threads 1" 0 . "$kvbook" calibrate $input $recipe --threads 1 -o "$work/t1.kvb"
expect "calibrate --threads 3" 0 . "$kvbook" calibrate $input $recipe --threads 3 -o "$work/t3.kvb"
same "the same bytes with one thread" "$work/a.kvb" "$work/t1.kvb"
same "the same bytes with three threads" "$work/a.kvb" "$work/t3.kvb"
expect "calibrate --seed 2" 0 . "$kvbook" calibrate $input $recipe --seed 2 -o "$work/s2.kvb"
if cmp -s "$work/a.kvb" "$work/s2.kvb"; then fail "another seed" "gives the same bytes"; else ok "another seed"; fi
expect "SOURCE_DATE_EPOCH" 0 . env SOURCE_DATE_EPOCH=1000000000 "$kvbook" calibrate $input $recipe -o "$work/dated.kvb"
"$kvbook" info --json "$work/dated.kvb" >"$tmp/dated.json"
json "SOURCE_DATE_EPOCH is the only date" "$tmp/dated.json" 'd["meta"]["created"] == "2001-09-09T01:46:40Z"'

expect "capture" 0 'wrote' "$kvbook" capture $input -o "$work/c.kvc"
expect "train" 0 'wrote .*1 bits' "$kvbook" train "$work/c.kvc" $recipe -o "$work/c.kvb"
same "capture and train equal calibrate" "$work/a.kvb" "$work/c.kvb"
expect "capture --dry-run" 0 '8 chunks of 128 tokens, 1024 rows' "$kvbook" capture $input --dry-run -o "$work/dry.kvc"
expect "train --dry-run" 0 '1024 rows, 2 layers' "$kvbook" train "$work/c.kvc" $recipe --dry-run -o "$work/dry.kvb"
expect "calibrate --dry-run" 0 'time +about' "$kvbook" calibrate $input $recipe --dry-run -o "$work/dry.kvb"
if ls "$work"/dry* >/dev/null 2>&1; then fail "a dry run writes nothing" "it did"; else ok "a dry run writes nothing"; fi
expect "sampling under --max-memory is said" 0 'sampling [0-9]+ of 1024 tokens' \
    "$kvbook" calibrate $input $recipe --max-memory "$(less_memory 0.5 $input $recipe)" -o "$work/small.kvb"
refuse "--max-memory for not one row" 5 '--max-memory' "$kvbook" calibrate $input $recipe --max-memory 100 -o "$work/no.kvb"

expect "info" 0 '^codebooks +8: keys 4x16, values 4x16' "$kvbook" info "$work/a.kvb"
"$kvbook" info --json "$work/a.kvb" >"$tmp/info.json"
json "info --json" "$tmp/info.json" 'd["schema"] == 1 and d["bits_nominal"] == 1 and d["codebooks"] == 8 and len(d["layers"]) == 2
    and d["policy"] == {"anchors": 0.01, "score": "exact-k", "window": 32, "sinks": 0,
    "exact": "half"} and len(d["id"]) == 64'
expect "policy flags go into the book" 0 . "$kvbook" calibrate $input $recipe --anchors 5% --window 16 --sinks 4 -o "$work/p.kvb"
"$kvbook" info --json "$work/p.kvb" >"$tmp/p.json"
json "policy in the book" "$tmp/p.json" 'd["policy"] == {"anchors": 0.05, "score": "exact-k", "window": 16, "sinks": 4,
    "exact": "half"}'
expect "verify" 0 ' 0 failed' "$kvbook" verify "$work/a.kvb" $model
"$kvbook" verify --json "$work/a.kvb" >"$tmp/verify.json"
json "verify --json" "$tmp/verify.json" 'd["ok"] and d["failed"] == [] and d["checks"] > 50'

evaluate="$model --text $tmp/test.txt --ctx 128 --chunks 3"
"$kvbook" eval $evaluate --book "$work/a.kvb" --json >"$tmp/e.json" 2>"$err"
json "eval --json has its fields" "$tmp/e.json" '{"schema", "model", "text", "ctx", "chunks", "targets", "ppl", "ppl_exact", "kl",
    "top1", "bits_nominal", "bits_effective", "bits_effective_ctx", "seconds"} <= set(d)'
json "eval --json adds up" "$tmp/e.json" 'd["chunks"] == 3 and d["targets"] == 3 * 127 and d["ppl"] > 1 and d["kl"] > 0
    and 0 < d["top1"] <= 1 and d["bits_nominal"] == 1 and d["bits_effective_ctx"] == 128
    and d["bits_effective"] > d["bits_effective_32k"] > d["bits_effective_128k"] > 1
    and abs(math.log(d["ppl"] / d["ppl_exact"]) - d["nll_delta"]) < 1e-9'
sed -n '/^## `eval --json`/,/^## Env/p' docs/cli.md | grep '^| `' | cut -d'|' -f2 | tr -d ' `' | tr ',' '\n' | LC_ALL=C sort >"$tmp/documented"
"$kvbook" eval $evaluate --book "$work/a.kvb" --decode 10 --by-position 64 --json 2>"$err" | tail -n 1 >"$tmp/all.json"
python3 -c 'import json, sys; print("\n".join(sorted(json.load(open(sys.argv[1])))))' "$tmp/all.json" >"$tmp/printed"
same "docs/cli.md lists the fields of eval --json" "$tmp/documented" "$tmp/printed"
"$kvbook" eval $evaluate --json >"$tmp/x.json" 2>"$err"
json "eval of the exact cache" "$tmp/x.json" 'd["ppl"] == d["ppl_exact"] and d["kl"] == 0 and d["book"] is None'
"$kvbook" eval $evaluate --json --threads 1 --book "$work/a.kvb" >"$tmp/e1.json" 2>"$err"
"$kvbook" eval $evaluate --json --threads 3 --book "$work/a.kvb" >"$tmp/e3.json" 2>"$err"
for n in 1 3; do
    sed 's/"seconds".*//' "$tmp/e.json" >"$tmp/left"; sed 's/"seconds".*//' "$tmp/e$n.json" >"$tmp/right"
    same "the same scores with $n threads" "$tmp/left" "$tmp/right"
done
"$kvbook" eval $evaluate --json --book "$work/a.kvb" "$work/s2.kvb" --book "$work/p.kvb" >"$tmp/three.json" 2>"$err"
expect "one object a line for several books" 0 '^3$' sh -c "wc -l <'$tmp/three.json' | tr -d ' '"
sed -n 1p "$tmp/three.json" | sed 's/"seconds".*//' >"$tmp/left"
sed 's/"seconds".*//' "$tmp/e.json" >"$tmp/right"
same "a book's score does not depend on the others" "$tmp/left" "$tmp/right"
"$kvbook" eval $evaluate --json --no-exact --book "$work/a.kvb" >"$tmp/n.json" 2>"$err"
json "eval --no-exact" "$tmp/n.json" 'd["ppl_exact"] is None and d["kl"] is None and d["top1"] is None and d["ppl"] > 1'
"$kvbook" eval $evaluate --json --book "$work/a.kvb" --window 128 >"$tmp/w.json" 2>"$err"
json "a window over the whole chunk is the exact cache" "$tmp/w.json" 'abs(d["nll_delta"]) < 1e-4 and d["top1"] > 0.99'
"$kvbook" eval $evaluate --json --book "$work/a.kvb" --anchors 100% --anchor-protocol chunk >"$tmp/all.json" 2>"$err"
json "all tokens anchors is the exact cache" "$tmp/all.json" 'abs(d["nll_delta"]) < 1e-4 and d["policy"]["protocol"] == "chunk"'
"$kvbook" eval $evaluate --json --book "$work/a.kvb" --also-bare >"$tmp/bare.json" 2>"$err"
json "--also-bare keeps nothing exact" "$tmp/bare.json" 'd["policy"]["window"] == 0 and d["policy"]["anchors"] == 0'
expect "eval table" 0 '^exact .*16\.000' "$kvbook" eval $evaluate --book "$work/a.kvb"
"$kvbook" eval $model --text "$tmp/test.txt" --ctx 128 --skip 1 --chunks 2 --json >"$tmp/skip.json" 2>"$err"
json "eval --skip" "$tmp/skip.json" 'd["chunks"] == 2 and d["skip"] == 1'
for n in 0 1; do
    "$kvbook" eval $model --text "$tmp/test.txt" --ctx 128 --skip $n --chunks 1 --book "$work/a.kvb" --json
done 2>"$err" | tr '\n' ',' | sed 's/,$//; s/.*/[&]/' >"$tmp/alone.json"
"$kvbook" eval $model --text "$tmp/test.txt" --ctx 128 --chunks 2 --book "$work/a.kvb" --json 2>"$err" |
    sed "s/.*/{\"both\": &, \"alone\": $(sed 's/[&/]/\\&/g' "$tmp/alone.json")}/" >"$tmp/chunks.json"
json "two chunks are the mean of each alone" "$tmp/chunks.json" 'all(
    abs(f(d["both"]) - (f(d["alone"][0]) + f(d["alone"][1])) / 2) < 1e-9 for f in
    (lambda r: math.log(r["ppl"]), lambda r: math.log(r["ppl_exact"]), lambda r: r["kl"], lambda r: r["top1"]))'
"$kvbook" eval $evaluate $recipe --calib-text "$tmp/train.txt" --calib-chunks 8 --json >"$tmp/r.json" 2>"$err"
json "eval --recipe calibrates as calibrate does" "$tmp/r.json" "d['ppl'] == $(sed 's/.*"ppl":\([0-9.e+]*\),.*/\1/' "$tmp/e.json")"

# Keys through a metric and a rotation.
for n in 1 2 3; do
    expect "calibrate --recipe best --threads $n" 0 'recipe best' \
        "$kvbook" calibrate $input --recipe best --k 4x16 --v 4x16 --threads $n -o "$work/best$n.kvb"
done
for n in 2 3; do same "best: the same bytes with $n threads" "$work/best1.kvb" "$work/best$n.kvb"; done
expect "best verifies" 0 ' 0 failed' "$kvbook" verify "$work/best1.kvb" $model
refuse "a recipe that deals out bits wants to know how many" 2 '--bits' \
    "$kvbook" calibrate $input --recipe best-fast -o "$work/none.kvb"
refuse "more bits than its shapes have" 2 '0\.25 to 8 bits' \
    "$kvbook" calibrate $input --recipe best-fast --bits 9 -o "$work/none.kvb"
expect "calibrate --recipe best-fast --bits 1.1" 0 '1\.1 bits, recipe best-fast' \
    "$kvbook" calibrate $input --recipe best-fast --bits 1.1 -o "$work/fast.kvb"
expect "info says how bits are dealt out" 0 'dealt out over heads: keys 0\.' "$kvbook" info "$work/fast.kvb"
expect "the same bytes from a capture" 0 . "$kvbook" capture $input -o "$work/s.kvc"
expect "train --recipe best-fast" 0 . "$kvbook" train "$work/s.kvc" --recipe best-fast --bits 1.1 -o "$work/fast2.kvb"
same "capture and train deal out the same bits" "$work/fast.kvb" "$work/fast2.kvb"
expect "capture --sensitivity 0" 0 . "$kvbook" capture $input --sensitivity 0 -o "$work/s0.kvc"
refuse "bits cannot be dealt out without sensitivities" 6 'sensitivity_k' \
    "$kvbook" train "$work/s0.kvc" --recipe best --bits 1 -o "$work/none.kvb"
"$kvbook" eval $evaluate --json --book "$work/best1.kvb" "$work/fast.kvb" >"$tmp/best.jsonl" 2>"$err"
sed 's/$/,/; 1s/^/[/; $s/,$/]/' "$tmp/best.jsonl" >"$tmp/best.json"
json "eval of transformed books" "$tmp/best.json" 'len(d) == 2 and all(r["kl"] > 0 and r["ppl"] > 1 and
    0.9 < r["bits_nominal"] <= 1.1 for r in d)'
"$kvbook" eval $evaluate --json --book "$work/best1.kvb" --window 128 --exact half >"$tmp/w.json" 2>"$err"
json "a window over the whole chunk is exact for a transformed book" "$tmp/w.json" 'abs(d["nll_delta"]) < 1e-4'

# Fisher weights: gradients are captured where the recipe asks, or by a flag.
expect "calibrate --recipe cq" 0 'recipe cq' "$kvbook" calibrate $input --recipe cq --k 4x16 --v 4x16 -o "$work/cq.kvb"
refuse "a capture without gradients" 6 'no layers\.0\.gradient_k.*--fisher' "$kvbook" train "$work/s0.kvc" --recipe cq --k 4x16 --v 4x16 -o "$work/none.kvb"
expect "capture --fisher" 0 . "$kvbook" capture $input --fisher --sensitivity 0 -o "$work/fisher.kvc"
expect "train by Fisher weights" 0 . "$kvbook" train "$work/fisher.kvc" --recipe cq --k 4x16 --v 4x16 -o "$work/cq2.kvb"
same "capture and train weight the same" "$work/cq.kvb" "$work/cq2.kvb"
expect "a book by Fisher weights verifies" 0 ' 0 failed' "$kvbook" verify "$work/cq.kvb" $model

printf '{"text": "%s"}\n{"text": "%s"}\n' "$(tr '\n' ' ' <"$tmp/test.txt")" "more words" >"$tmp/test.jsonl"
expect "text of a .jsonl file" 0 '^exact' "$kvbook" eval $model --text "$tmp/test.jsonl" --ctx 128 --chunks 2
expect "fewer chunks than asked for are said" 0 'warning: 1000 chunks asked for' "$kvbook" eval $model --text "$tmp/test.txt" --ctx 128 --chunks 1000 --no-progress

"$kvbook" generate $model --prompt "abc def" -n 20 >"$tmp/g1" 2>"$err"
"$kvbook" generate $model --prompt "abc def" -n 20 >"$tmp/g2" 2>"$err"
same "generate is deterministic" "$tmp/g1" "$tmp/g2"
printf 'abc def' >"$tmp/prompt"
"$kvbook" generate $model --prompt-file "$tmp/prompt" -n 20 >"$tmp/g2" 2>"$err"
same "generate --prompt-file" "$tmp/g1" "$tmp/g2"
"$kvbook" generate $model --prompt "abc def" -n 20 --book "$work/a.kvb" --window 64 >"$tmp/g2" 2>"$err"
same "generate with everything in the window equals the exact cache" "$tmp/g1" "$tmp/g2"
"$kvbook" generate $model --prompt "abc def" -n 20 --book "$work/best1.kvb" --window 64 --exact half >"$tmp/g2" 2>"$err"
same "generate with a transformed book and a wide window" "$tmp/g1" "$tmp/g2"
expect "generate with a block frame and a transform" 0 'new ones in .* bits an element' \
    "$kvbook" generate $model --prompt "abc def" -n 60 --ignore-eos --book "$work/fast.kvb"
expect "generate with a book" 0 'new ones in .* bits an element' "$kvbook" generate $model --prompt "abc def" -n 60 --ignore-eos --book "$work/a.kvb"
"$kvbook" generate $model --prompt "abc def" -n 20 --temperature 1 --seed 5 >"$tmp/g3" 2>"$err"
"$kvbook" generate $model --prompt "abc def" -n 20 --temperature 1 --seed 5 >"$tmp/g4" 2>"$err"
same "drawing is keyed by the seed" "$tmp/g3" "$tmp/g4"
refuse "generate beyond the context" 2 'exceed' "$kvbook" generate $model --prompt "abc def" -n 100000

"$kvbook" eval $evaluate --json --book "$work/a.kvb" >"$tmp/scores.jsonl" 2>"$err"
expect "report" 0 'wrote' "$kvbook" report "$work/a.kvb" --scores "$tmp/scores.jsonl" -o "$work/r.html"
expect "report has perplexity against bits" 0 'Perplexity against bits' cat "$work/r.html"
expect "report draws how training went" 0 'class="line v" points=' cat "$work/r.html"
expect "report says who came to rest" 0 'heads of the keys had (not )?come to rest' cat "$work/r.html"
expect "report says where anchors stand" 0 'aria-label="position in the chunk"' cat "$work/r.html"
expect "report says how scores are distributed" 0 'aria-label="log2 of score over mean"' cat "$work/r.html"
"$kvbook" info --json "$work/a.kvb" >"$tmp/scores.json" 2>"$err"
json "a book says where anchors stand" "$tmp/scores.json" 'abs(sum(d["meta"]["training"]["scores"]["anchor_positions"]) - 1) < 1e-3'
json "and how scores are distributed" "$tmp/scores.json" 'abs(sum(d["meta"]["training"]["scores"]["distribution"]) - 1) < 1e-3'
"$kvbook" info "$work/a.kvb" >"$out" 2>"$err"
if [ "$(wc -l <"$out")" -le 12 ] && awk 'NR > 1 && length($0) > 80 { bad = 1 } END { exit bad }' "$out"; then ok "info fits the screen"
else fail "info fits the screen" "$(wc -l <"$out") lines"; fi
expect "report has bars and scores" 0 '<rect class=k' cat "$work/r.html"
expect "report has maps of error" 0 'aria-label="Error of values, layer by head"' cat "$work/r.html"
"$kvbook" report -q tests/golden/full.kvb -o "$work/m.html" 2>"$err"
expect "report warns in words" 0 'Held-out keys have 100 % more error' cat "$work/m.html"
expect "report says what is not known" 0 'no quality records of the values' cat "$work/m.html"
expect "report says where the bits go" 0 'aria-label="effective bits"' cat "$work/r.html"
if grep -qiE '<script|https?://[^ <]*\.(js|css|png)|<link|<img' "$work/r.html"; then fail "report stands alone" "it loads something"
else ok "report stands alone"; fi
if python3 - "$work/r.html" 2>"$err" <<'PY'
import html.parser, sys
class Check(html.parser.HTMLParser):
    open, void = [], {"meta", "br"}
    def handle_starttag(self, tag, attributes):
        if tag not in self.void and tag not in ("td", "th", "li"):
            self.open.append(tag)
    def handle_endtag(self, tag):
        if tag not in ("td", "th", "li"):
            assert self.open.pop() == tag, (tag, self.getpos())
check = Check()
check.feed(open(sys.argv[1], encoding="utf-8").read())
assert not check.open, check.open
PY
then ok "report closes what it opens"; else fail "report closes what it opens" "see above"; fi
expect "report has the exact cache beside the book" 0 'exact cache' cat "$work/r.html"
if grep -q 'not calibrated on' "$work/r.html"; then fail "report claims nothing of the scored text" "it does"
else ok "report claims nothing of the scored text"; fi
expect "info of a book that does not know its text" 0 '^text        -$' "$kvbook" info tests/golden/minimal.kvb
"$kvbook" report -q tests/golden/minimal.kvb -o "$work/m.html" 2>"$err"
expect "report of a book that does not know its text" 0 'Calibration text</td><td>-<' cat "$work/m.html"
refuse "report of a file that holds no scores" 3 'line 1' "$kvbook" report "$work/a.kvb" --scores "$tmp/info.json" -o "$work/r2.html"

stories=../shared/data/stories260K
if [ -f $stories/stories260K.bin ]; then
    llama="--model $stories/stories260K.bin --tokenizer $stories/tok512.bin"
    expect "llama2.c: generate" 0 'there was a little girl' "$kvbook" generate $llama --prompt "Once upon a time" -n 30
    "$kvbook" generate $llama --prompt "Once upon a time" -n 200 -q >"$tmp/story.txt" 2>"$err"
    printf 'Once upon a time%s' "$(cat "$tmp/story.txt")" >"$tmp/whole.txt"
    "$kvbook" eval $llama --text "$tmp/whole.txt" --ctx 128 --chunks 1 --json >"$tmp/story.json" 2>"$err"
    json "llama2.c: a model is not surprised by its own most likely words" "$tmp/story.json" '1 < d["ppl"] < 2'
    expect "llama2.c: calibrate" 0 'wrote' \
        "$kvbook" calibrate $llama --text "$tmp/story.txt" "$tmp/train.txt" --ctx 64 --recipe cq --bits 4 --k 2x16 --v 2x16 -o "$work/s.kvb"
    expect "llama2.c: eval" 0 '^s\.kvb' "$kvbook" eval $llama --text "$tmp/story.txt" --ctx 64 --chunks 2 --book "$work/s.kvb"
    refuse "llama2.c: no tokenizer" 2 '--tokenizer' "$kvbook" eval --model $stories/stories260K.bin --text "$tmp/test.txt"
else
    skip "llama2.c model" "no ../shared/data/stories260K here"
fi
done_testing
