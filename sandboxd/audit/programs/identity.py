"""What am I? usage: identity.py WHAT. Says `succeeded` when it is more than a job should be, else `held`."""

import os
import resource
import shutil
import subprocess
import sys


def status():
    with open("/proc/self/status") as lines:
        return dict(line.rstrip("\n").split(":", 1) for line in lines)


def capabilities():
    found = status()
    return any(int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))


def filter():
    found = status()
    return found["NoNewPrivs"].strip() != "1" or found["Seccomp"].strip() != "2"


def uid():
    found = status()
    return set(found["Uid"].split() + found["Gid"].split()) != {"1000"} or bool(found["Groups"].strip())


def map():
    """One line, of ids that lie together and far from everybody's."""
    for kind in ("uid", "gid"):
        with open(f"/proc/self/{kind}_map") as lines:
            words = lines.read().split()
        print(words)
        if len(words) != 3 or int(words[1]) < 1 << 30 or int(words[2]) > 65536:
            return True
    return False


def mounts():
    """Nothing is shared with the host's mounts; no suid program, no device and no program where none belongs."""
    wrong = []
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            before, _, _ = line.partition(" - ")
            _, _, _, _, where, options, *optional = before.split()
            options = options.split(",")
            wanted = {"nosuid"} | ({"nodev"} if where != "/dev" and not where.startswith("/dev/") else set())
            wanted |= {"noexec"} if where in ("/dev", "/proc") else set()
            wrong += [(where, missing) for missing in wanted - set(options)] + [(where, word) for word in optional]
    print(wrong)
    return bool(wrong)


def limits():
    """Backstops behind the cgroup's limits, and who is killed first when the host itself is out of memory."""
    most = {resource.RLIMIT_CORE: 1, resource.RLIMIT_MEMLOCK: 64 << 20, resource.RLIMIT_SIGPENDING: 1024}
    finite = (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE)
    found = {number: resource.getrlimit(number) for number in (*finite, *most)}
    with open("/proc/self/oom_score_adj") as file:
        score = int(file.read())
    print(found, score)
    unbounded = any(found[number][1] == resource.RLIM_INFINITY for number in finite)
    return unbounded or any(found[number][1] > value for number, value in most.items()) or score != 1000


def modes():
    """What a program makes is its own to open to others; nothing of it is dumped; nobody else writes where it works."""
    umask = os.umask(0)
    found = {path: (oct(os.stat(path).st_mode), os.stat(path).st_uid == os.getuid()) for path in ("/tmp", "/box")}
    with open("/proc/self/coredump_filter") as file:
        dumped = int(file.read(), 16)
    print(oct(umask), found, dumped, os.getsid(0), os.getpgid(0))
    wanted = {"/tmp": ("0o41777", False), "/box": ("0o40755", True)}
    return umask != 0o022 or found != wanted or dumped != 0 or os.getsid(0) == 0


def descriptors():
    opened = [number for number in range(256) if os.path.lexists(f"/proc/self/fd/{number}")]
    kinds = {os.readlink(f"/proc/self/fd/{number}").split(":")[0] for number in opened}
    print(opened, kinds)
    return opened != [0, 1, 2] or not kinds <= {"pipe", "/memfd"}


def folders():
    for link in ("cwd", "root"):
        if not os.readlink(f"/proc/self/{link}").startswith("/"):
            return True
    above = os.stat("/").st_ino
    os.chdir("/".join([".."] * 64))
    return os.stat(".").st_ino != above or not os.getcwd().startswith("/")


def gained(program):
    shown = subprocess.run([program, "--help"], env={"LD_SHOW_AUXV": "1"}, capture_output=True, text=True).stdout
    ids = {line.split()[1] for line in shown.splitlines() if line.startswith(("AT_EUID", "AT_EGID"))}
    # A program that gained rights is not shown its vector.
    return ids != {"1000"}


def setuid():
    programs = [f"/usr/bin/{name}" for name in ("mount", "su", "passwd", "newgrp")]
    programs = [path for path in programs if os.path.exists(path) and os.stat(path).st_mode & 0o4000]
    for folder in ("/box", "/tmp", "/dev/shm"):
        mine = shutil.copy("/usr/bin/env", folder + "/gain")
        os.chmod(mine, 0o6755)
        programs.append(mine)
    return any([gained(path) for path in programs])


def environment():
    """What the environment names is loaded by this process and by its own child, and was by nobody before."""
    with subprocess.Popen(["/bin/bash", "-c", ":"]) as child:
        pass
    with open("/tmp/loaded") as file:
        records = [tuple(line.split()) for line in file]
    print(records)
    me = (str(os.getuid()), str(os.getpid()), os.readlink("/proc/self/ns/pid"))
    childs = (me[0], str(child.pid), me[2])
    own = {("preload", *me), ("python", *me), ("preload", *childs), ("bash", *childs[:2])}
    assert own <= set(records), "code of the job's is loaded where the environment is the job's"
    return bool(set(records) - own)


print("succeeded" if globals()[sys.argv[1]]() else "held")
