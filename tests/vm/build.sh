#!/bin/bash
# Builds SANDBOXD_VM_DIR/{rootfs,vmlinuz,initrd.img}: Debian 12 with all that sandboxd needs, its Python packages installed.
# Does nothing when what it was built from has not changed. Needs root and Debian's package mirror; no KVM, no loop device.
# environment: SANDBOXD_VM_DIR, VM_SOURCES (an apt sources file; default: this machine's own)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
dir=$SANDBOXD_VM_DIR
packages=systemd,systemd-sysv,kmod,iproute2,procps,mount,ca-certificates,busybox-static
packages+=,python3,python3-venv,gcc,g++,libc6-dev,libseccomp2,util-linux,redis-server
stamp=$(cat "$here"/{build.sh,initrd-init,guest-run,guest.service,guest.target} "$checkout/requirements/test.lock" "$checkout/scripts/install.sh" | sha256sum)
step() { printf '[vm +%ds] %s\n' "$SECONDS" "$*" >&2; }
gently() { nice -n 10 "$@"; }

[ "$(cat "$dir/stamp" 2>/dev/null)" != "$stamp" ] || exit 0
mkdir -p "$dir"
cd "$dir"
rm -rf stamp rootfs kernel initrd

missing=()
for need in qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    step "host packages: ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi

step "root folder"
gently mmdebstrap --quiet --variant=minbase --mode=root \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$packages" bookworm rootfs "${VM_SOURCES:-$(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)}"

step "kernel, unpacked: no boot loader, no initramfs-tools"
image=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
mkdir kernel
(cd kernel && apt-get -qq -o APT::Sandbox::User=root download "$image" && dpkg-deb -x ./*.deb . && rm ./*.deb)
cp kernel/boot/vmlinuz-* vmlinuz
cp -a kernel/lib/modules rootfs/usr/lib/
chroot rootfs depmod -a "${image#linux-image-}"

step "initrd: busybox and the modules up to virtio_blk; ext4 is built in"
mkdir -p initrd/{bin,dev,proc,sys,modules,root}
cp rootfs/bin/busybox initrd/bin/
install -m 755 "$here/initrd-init" initrd/init
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    cp "$(find kernel/lib/modules -name "$module.ko")" initrd/modules/
done
(cd initrd && find . | bin/busybox cpio -o -H newc 2>/dev/null) | gzip -9 >initrd.img
rm -rf kernel initrd

step "Python packages"
mkdir rootfs/src
tar -c -C "$checkout" pyproject.toml hatch_build.py README.md LICENSE requirements scripts sandboxd workers benchmarks policies | tar -x -C rootfs/src --no-same-owner
# In the root folder, whose Python may differ from the host's in its version; with the host's resolver and certificates.
cp /etc/resolv.conf rootfs/etc/resolv.conf
cp /etc/ssl/certs/ca-certificates.crt rootfs/root/certificates.crt
proxies=$(env | grep -Ei '^(https?|no)_proxy=' || :)
gently chroot rootfs env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PIP_CERT=/root/certificates.crt PIP_NO_CACHE_DIR=1 $proxies \
    /src/scripts/install.sh /opt/sandboxd-tests test
rm -rf rootfs/root/certificates.crt rootfs/etc/resolv.conf rootfs/src

step "configuration"
: >rootfs/etc/fstab
echo vm >rootfs/etc/hostname
echo '127.0.0.1 localhost vm' >rootfs/etc/hosts
echo 0123456789abcdef0123456789abcdef >rootfs/etc/machine-id
install -m 755 "$here/guest-run" rootfs/usr/local/sbin/
install -m 644 "$here/guest.service" "$here/guest.target" rootfs/etc/systemd/system/
for unit in redis-server apt-daily.timer apt-daily-upgrade.timer systemd-update-utmp.service systemd-random-seed.service \
    systemd-pstore.service e2scrub_reap.service; do
    chroot rootfs systemctl --quiet mask "$unit" 2>/dev/null || :
done
echo "$stamp" >stamp
step "built"
