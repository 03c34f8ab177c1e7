"""Runs a command that resumes, killing it with SIGKILL at random moments, until N kills have hit it; then lets it end. Starts anew when a run
ends before its kill."""
import random, subprocess, sys, time
kills, seed, output, limit = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
command = sys.argv[5:]
random.seed(seed)
done = finished = 0
while done < kills:
    p = subprocess.Popen(command + ["--resume", "-o", output], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, err = p.communicate(timeout=random.uniform(0.0, limit))
        if p.returncode != 0:
            print("run ended with %d: %s" % (p.returncode, err.decode()))
            sys.exit(1)
        finished += 1
        if finished > 50 * kills:
            sys.exit("no run was killed")
    except subprocess.TimeoutExpired:
        p.kill()
        p.communicate()
        done += 1
p = subprocess.run(command + ["--resume", "-o", output], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
print("%d kills, %d runs ended in between, the last with %d" % (done, finished, p.returncode))
sys.exit(p.returncode)
