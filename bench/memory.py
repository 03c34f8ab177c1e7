#!/usr/bin/env python3
"""Time and peak memory of a calibration over texts of doubling length, with and without --max-memory.

    bench/memory.py [--build build] [--limit 48M] [--svg bench/results/memory.svg]

On the tests' tiny model, whose captures outgrow everything else soon. Prints a table and writes a plot. Time is the processor's, of one
thread: other programs on the machine do not count."""
import argparse, os, platform, random, subprocess, tempfile

CHUNKS = [1000, 2000, 4000, 8000, 16000]
WIDTH, HEIGHT, LEFT, TOP, ROOM = 360, 260, 60, 40, 460


def measure(command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit("failed: " + " ".join(command))
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def panel(x0, title, unit, lines):
    """Both axes linear from 0: a straight line is a cost that grows with the text."""
    most = max(y for _, _, points in lines for _, y in points) * 1.1
    out = ['<text x="%d" y="24" font-weight="bold">%s</text>' % (x0, title)]
    for i in range(5):
        y = TOP + HEIGHT - HEIGHT * i / 4
        out.append('<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#888" stroke-opacity="0.3"/>' % (x0, y, x0 + WIDTH, y))
        out.append('<text x="%d" y="%.1f" text-anchor="end">%.3g</text>' % (x0 - 6, y + 4, most * i / 4))
    for c in CHUNKS:
        x = x0 + WIDTH * c / CHUNKS[-1]
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%d</text>' % (x, TOP + HEIGHT + 18, c))
    out.append('<text x="%d" y="%d">%s</text>' % (x0, TOP + HEIGHT + 38, unit + " over chunks of 128 tokens"))
    for i, (name, colour, points) in enumerate(lines):
        path = " ".join("%.1f,%.1f" % (x0 + WIDTH * c / CHUNKS[-1], TOP + HEIGHT - HEIGHT * y / most) for c, y in points)
        out.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>' % (path, colour))
        out.append('<text x="%d" y="%d" fill="%s">%s</text>' % (x0 + 8, TOP + 14 + 16 * i, colour, name))
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build")
    parser.add_argument("--limit", default="96M")
    parser.add_argument("--svg", default="bench/results/memory.svg")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model, text = folder + "/tiny.gguf", folder + "/text.txt"
        subprocess.run([args.build + "/tests/make_tiny_gguf", model, "1"], check=True)
        for chunks in CHUNKS:
            random.seed(1)
            with open(text, "w") as file: # 3 tokens a word and more
                for _ in range(45 * chunks // 8):
                    file.write(" ".join(chr(97 + random.randrange(26)) * 3 for _ in range(8)) + "\n")
            base = [args.build + "/kvbook", "calibrate", "--model", model, "--text", text, "--ctx", "128", "--chunks", str(chunks),
                    "--recipe", "best-fast", "--bits", "2", "--no-allocate", "--threads", "1", "-q", "-o", folder + "/book.kvb"]
            rows.append((chunks,) + measure(base + ["--max-memory", args.limit]) + measure(base))
            print("%d measured" % chunks, flush=True)
    cpu = next((l.split(": ")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    print("machine: %s, %d cores, %s" % (cpu, os.cpu_count(), platform.platform()))
    print("command: bench/memory.py --limit %s; best-fast at 2 bits, one thread" % args.limit)
    print("%8s %12s %12s %12s %12s" % ("chunks", "s, limit", "MiB, limit", "s, none", "MiB, none"))
    for row in rows:
        print("%8d %12.2f %12.1f %12.2f %12.1f" % row)
    limited, free = "--max-memory " + args.limit, "all tokens kept"
    lines = [panel(LEFT, "Time", "CPU seconds", [(limited, "#2a78d6", [(r[0], r[1]) for r in rows]), (free, "#eb6834", [(r[0], r[3]) for r in rows])]),
             panel(LEFT + ROOM, "Peak memory", "MiB", [(limited, "#2a78d6", [(r[0], r[2]) for r in rows]), (free, "#eb6834", [(r[0], r[4]) for r in rows])])]
    with open(args.svg, "w") as file:
        file.write('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#777">\n' %
                   (LEFT + ROOM + WIDTH + 40, TOP + HEIGHT + 50))
        file.write("\n".join(sum(lines, [])) + "\n</svg>\n")


if __name__ == "__main__":
    main()
