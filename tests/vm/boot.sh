#!/bin/bash
# Boots the machine once and lets it run /root/command: its output comes here, its exit status is this one's; 125 without one.
# environment: SANDBOXD_VM_DIR VM_TIMEOUT (seconds, 1800) VM_MEMORY (MiB, 3072) VM_CPUS (2) VM_LOG_LEVEL (kernel's, 4)
set -euo pipefail
dir=$SANDBOXD_VM_DIR
run=$(mktemp -d "$dir/run.XXXXXX")
trap 'rm -rf "$run"' EXIT
disk=$run/root.img
nice -n 10 mke2fs -q -t ext4 -L root -m 0 -O ^has_journal,^metadata_csum -E lazy_itable_init=1,nodiscard -d "$dir/rootfs" -F "$disk" 3G

# No KVM: where it exists it is often another hypervisor's, under which a stock kernel does not start. la57=off halves the cost of a fork.
set +e
nice -n 10 timeout --foreground "${VM_TIMEOUT:-1800}" qemu-system-x86_64 \
    -accel tcg,thread=multi,tb-size=512 -cpu max,la57=off -M q35 -smp "${VM_CPUS:-2}" -m "${VM_MEMORY:-3072}" \
    -nodefaults -no-reboot -display none -monitor none -nic none \
    -kernel "$dir/vmlinuz" -initrd "$dir/initrd.img" \
    -append "console=ttyS0 loglevel=${VM_LOG_LEVEL:-4} panic=-1 mitigations=off systemd.unit=guest.target systemd.show_status=0 systemd.unified_cgroup_hierarchy=1" \
    -drive "file=$disk,format=raw,if=virtio,cache=unsafe" \
    -chardev "file,id=console,path=$run/console.log" -serial chardev:console \
    -chardev stdio,id=output,signal=off -serial chardev:output \
    -chardev "file,id=status,path=$run/status" -serial chardev:status </dev/null
qemu=$?
set -e
if [ -s "$run/status" ]; then
    read -r status started ended <"$run/status"
    echo "vm: exit status $status; the command started $started s after power on and ended at $ended s" >&2
    exit "$status"
fi
echo "vm: the machine ended without a status (qemu: $qemu); the end of its console:" >&2
tail -n 40 "$run/console.log" >&2
exit 125
