#!/bin/sh
# First and only process of an emulated board. Lines that begin with "board: " are for the host.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "board: fail module $module"
done
# They lie in memory, which is the board's.
rm -r /modules
echo 0 > /proc/sys/kernel/randomize_va_space
for word in $(cat /proc/cmdline); do
    case $word in board.limit_s=*) limit_s=${word#*=} ;; esac
done
mount -t ext4 -o ro,noload /dev/pmem0 /system || echo "board: fail system"
mount -t ext4 /dev/pmem1 /system/job || echo "board: fail job"
mount -t proc proc /system/proc
mount -t sysfs sys /system/sys
mount --bind /dev /system/dev
echo "board: kernel $(uname -r)"
while read -r name value _; do
    case $name in MemTotal:) echo "board: memory_seen_kib $value" ;; esac
done < /proc/meminfo
read -r boot_s _ < /proc/uptime
echo "board: boot_guest_s $boot_s"

# A board that is short of memory but not out of it reads the same pages of programs again and
# again, and hardly gets on. When that takes a good part of each of three seconds, it will not end.
watch_memory() {
    before_us=0 short=0
    while sleep 1; do
        while read -r kind _ _ _ total; do
            case $kind in full) now_us=${total#total=} ;; esac
        done < /proc/pressure/memory
        if [ $((now_us - before_us)) -gt 300000 ]; then short=$((short + 1)); else short=0; fi
        before_us=$now_us
        if [ $short -ge 3 ]; then
            echo "board: short $short"
            poweroff -f
        fi
    done
}
watch_memory &
if [ -n "$limit_s" ]; then
    (sleep "$limit_s"; echo "board: over $limit_s"; poweroff -f) &
fi
cd /system/job || echo "board: fail job"
env -i ENVIRONMENT \
    chroot /system /usr/bin/python3 -c 'import os, sys
os.chdir("/job")
os.execv(sys.executable, [sys.executable, "-P", "runner.py", "spec.json", "result.json"])' \
    > /tmp/said 2>&1
status=$?
tail -c 4000 /tmp/said
cd /
read -r all_s _ < /proc/uptime
umount /system/job || echo "board: fail umount"
echo "board: guest_s $all_s"
echo "board: exit $status"
poweroff -f
