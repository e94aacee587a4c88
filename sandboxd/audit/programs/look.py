"""What can be seen? usage: look.py WHAT. Says `succeeded` when something of the host is seen, else `held`.

`own-WHAT` puts there what would be found, and must find it: the control.
"""

import errno
import os
import socket
import sys
import time

what = sys.argv[1]
own = what.startswith("own-")
what = what.removeprefix("own-")


def found():
    """Everything that is neither file, folder nor link; the folders themselves tell those apart."""
    folders = ["/"]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except PermissionError:
            continue
        for entry in entries:
            if entry.is_symlink() or entry.is_file(follow_symlinks=False):
                continue
            if entry.is_dir(follow_symlinks=False):
                if entry.path != "/proc":
                    folders.append(entry.path)
            else:
                yield entry.path


def processes():
    child = os.fork() if own else 0
    if own and child == 0:
        import time

        time.sleep(5)
        os._exit(0)
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    print(seen)
    if own:
        os.kill(child, 9)
    return bool(seen)


def specials():
    expected = {f"/dev/{name}" for name in ("full", "null", "random", "urandom", "zero")}
    if own:
        socket.socket(socket.AF_UNIX).bind("/tmp/socket")
        os.mkfifo("/box/fifo")
        expected -= {"/dev/null"}
    more = set(found()) - expected
    print(more)
    return more == {"/tmp/socket", "/box/fifo", "/dev/null"} if own else bool(more)


def loopback():
    ports = (22, 25, 53, 80, 111, 443, 631, 2375, 3306, 5432, 6379, 8000, 8080, 8081, 9090, 11211, 27017)
    answers = {socket.socket().connect_ex(("127.0.0.1", port)) for port in ports}
    print([errno.errorcode.get(each, each) for each in answers])
    return 0 in answers


# Tables that a heading begins: nothing follows it where there is no socket, route or neighbour.
TABLES = "arp icmp icmp6 packet raw raw6 route rt_cache tcp tcp6 udp udp6 udplite udplite6 unix".split()
# Some of their numbers are the whole host's, in every network namespace; they have no names, addresses or ports.
COUNTERS = "protocols sockstat softnet_stat".split()


def network():
    def lines(name):
        with open("/proc/self/net/" + name, errors="replace") as file:
            return [line for line in file.read().splitlines() if line.strip("\0")]

    rows = {name: lines(name)[1:] for name in TABLES if os.path.exists("/proc/self/net/" + name)}
    devices = [line.split(":")[0].strip() for line in lines("dev")[2:]]
    addresses = [line.split()[1] for line in lines("fib_trie") if "|-- " in line]
    addresses6 = [line.split()[0] for line in lines("if_inet6")]
    print({name: lines(name)[:3] for name in COUNTERS})
    print({name: found for name, found in rows.items() if found}, devices, addresses, addresses6)
    strange = [address for address in addresses if not address.startswith("127.")] + addresses6[1:]
    return bool(any(rows.values()) or devices != ["lo"] or strange)


def folders():
    seen = {}
    for folder in ("/root", "/home", "/var", "/run", "/opt", "/srv", "/mnt", "/media", "/sys", "/boot", "/lost+found"):
        try:
            seen[folder] = os.listdir(folder)
        except OSError:
            continue
    print(seen)
    return any(seen.values())


def etc():
    generated = {"passwd", "group", "hosts", "hostname", "nsswitch.conf"}
    allowed = {"localtime", "alternatives", "ld.so.cache", "ssl"}
    more = {name for name in os.listdir("/etc") if not name.startswith("java-")} - generated - allowed
    print(more)
    return bool(more)


def proc():
    more = {name for name in os.listdir("/proc") if not name.isdigit()} - {"self", "thread-self"}
    print(more)
    return bool(more)


def own_files(*names):
    return "".join(open(f"/proc/self/{name}", errors="replace").read() for name in names)


def paths():
    text = own_files("mountinfo", "mounts", "mountstats", "maps", "environ", "cmdline")
    words = [word for word in ("sandboxd", "slot-", "/var/", "/run/", "/opt/", "/home/", "/root/") if word in text]
    print(words)
    return bool(words)


def host_name():
    return os.uname().nodename != "sandbox" or socket.gethostname() != "sandbox"


def variables():
    """What the environment was at the first moment: these and nothing else."""
    if own and "TOKEN" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TOKEN": "secret"})
    found = dict(word.split("=", 1) for word in own_files("environ").split("\0") if word)
    home = {"HOME": "/box", "USER": "sandbox", "LOGNAME": "sandbox"}
    known = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **home}
    print({name: value for name, value in found.items() if known.get(name) != value})
    return found != known


def clocks():
    """How long the host has been up."""
    offsets = [line.split()[1:] for line in own_files("timens_offsets").splitlines()]
    print(offsets, time.clock_gettime(time.CLOCK_BOOTTIME))
    return len(offsets) != 2 or any(not seconds.startswith("-") for seconds, _ in offsets)


def cgroup():
    lines = own_files("cgroup").splitlines()
    own_groups = [line for line in lines if line.split(":")[1] in ("", "memory", "pids")]
    return not own_groups or {line.split(":", 2)[2] for line in own_groups} != {"/"}


print("succeeded" if globals()[what.replace("-", "_")]() else "held")
