/* Attacks on what surrounds a sandbox: sockets and pipes of the host, control groups, settings and devices of the kernel,
 * the processes that made the sandbox, and a neighbour in another slot. */
#include "attacker.h"
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <linux/capability.h>
#include <unistd.h>

/* Sockets and pipes that are files of the host. */
static struct sockaddr_un named(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    return to;
}
static int connect_to(const char *path, int type) {
    struct sockaddr_un to = named(path);
    int fd = socket(AF_UNIX, type, 0);
    return judge(fd < 0 ? -1 : connect(fd, (void *)&to, sizeof to), "connect to a unix socket");
}
int a_unix_socket(char **arg) { return connect_to(arg[0], SOCK_STREAM); }
int a_packets(char **arg) { return connect_to(arg[0], SOCK_SEQPACKET); }
/* Without socket(2): one of a pair sends to whom it likes. */
int a_unix_datagram(char **arg) {
    struct sockaddr_un to = named(arg[0]);
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0) return end(CLOSED, "pair of unix sockets");
    return judge(sendto(pair[0], "x", 1, 0, (void *)&to, sizeof to), "send to a unix socket");
}
int a_fifo(char **arg) { return judge(open(arg[0], O_RDWR | O_NONBLOCK), "open the pipe for writing"); }

/* Opened for writing and closed again: nothing is written. */
static int opens(const char *path, int flags) {
    int fd = open(path, flags | O_NOCTTY | O_NONBLOCK);
    if (fd >= 0) close(fd);
    return fd >= 0;
}
static int any_opens(const char **paths, int flags, const char *what) {
    int found = 0;
    for (; *paths; paths++) {
        if (opens(*paths, flags)) return end(OPEN, *paths);
        if (errno != ENOENT && errno != ENODEV && errno != ENXIO) found = errno;
    }
    errno = found ? found : ENOENT;
    return end(CLOSED, what);
}

/* The files by which control groups are ruled: of the own group and of every group above it, in each hierarchy. */
int a_group_files(char **arg) {
    (void)arg;
    const char *files[] = {"cgroup.procs", "tasks", "notify_on_release", "release_agent", "cgroup.subtree_control",
                           "memory.limit_in_bytes", "memory.max", "pids.max", "cgroup.kill"};
    char line[4096], path[8192];
    int found = ENOENT;
    FILE *own = fopen("/proc/self/cgroup", "r");
    while (own && fgets(line, sizeof line, own)) {
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group) continue;
        line[strcspn(line, "\n")] = 0;
        *group++ = 0;
        names += strncmp(names + 1, "name=", 5) ? 1 : 6;
        for (;;) {
            for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
                snprintf(path, sizeof path, "/sys/fs/cgroup/%s%s/%s", names, group, files[i]);
                if (opens(path, O_WRONLY)) return end(OPEN, path);
                if (errno != ENOENT) found = errno;
            }
            char *up = strrchr(group, '/');
            if (!up || !*group) break;
            *up = 0;
        }
    }
    errno = found;
    return end(CLOSED, "write the files of control groups");
}
int a_mount_groups(char **arg) {
    (void)arg;
    if (mount("none", ".", "cgroup2", 0, NULL) == 0) return end(OPEN, "mount cgroup2");
    if (errno == ENODEV || errno == EBUSY) return end(CANNOT, "mount cgroup2");
    return end(CLOSED, "mount cgroup2");
}
int a_kernel_files(char **arg) {
    (void)arg;
    const char *paths[] = {"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug",
                           "/proc/sys/vm/drop_caches", "/proc/sys/user/max_user_namespaces",
                           "/proc/sysrq-trigger", "/proc/timer_list", "/proc/1/oom_score_adj", "/proc/irq/default_smp_affinity",
                           "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", NULL};
    return any_opens(paths, O_WRONLY, "write settings of the kernel");
}
/* With a path: that node. Without: all nodes of the host that lead into the kernel. */
int a_devices(char **arg) {
    const char *one[] = {arg[0], NULL};
    const char *paths[] = {"/dev/kmsg", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kvm", "/dev/fuse", "/dev/net/tun",
                           "/dev/loop-control", "/dev/loop0", "/dev/vhost-net", "/dev/vsock", "/dev/userfaultfd", "/dev/autofs",
                           "/dev/btrfs-control", "/dev/console", "/dev/tty0", "/dev/tty1", "/dev/vcs", "/dev/ptmx", "/dev/vda",
                           "/dev/sda", "/dev/nvme0n1", "/dev/mapper/control", "/dev/hwrng", "/dev/rtc0", "/dev/uinput", NULL};
    return any_opens(arg[0] ? one : paths, O_RDONLY, "open devices");
}

/* Other processes, by number: all that tells or reaches what they are. */
int a_open_processes(char **arg) {
    const char *files[] = {"mem", "environ", "root/etc", "exe", "maps", "fd/0", "cwd/.", "auxv"};
    char path[64];
    int found = ENOENT;
    for (; *arg; arg++)
        for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
            snprintf(path, sizeof path, "/proc/%s/%s", *arg, files[i]);
            if (opens(path, O_RDONLY)) return end(OPEN, path);
            if (errno != ENOENT) found = errno;
        }
    errno = found;
    return end(CLOSED, "look into processes");
}

/* By the third table of an x86_64 kernel. */
int a_x32(char **arg) {
    (void)arg;
#ifdef __x86_64__
    long rc = syscall(0x40000000 | SYS_getpid);
    return end(rc > 0 ? OPEN : errno == ENOSYS ? CANNOT : CLOSED, "getpid by the table of x32");
#else
    errno = ENOSYS;
    return end(CANNOT, "getpid by the table of x32");
#endif
}

/* The terminal that standard input may be. */
int a_own_terminal(char **arg) {
    (void)arg;
    if (!isatty(0)) return end(CANNOT, "no terminal");
    return judge(ioctl(0, TIOCSCTTY, 0), "TIOCSCTTY");
}
int a_tty(char **arg) {
    (void)arg;
    if (!isatty(0)) return end(CANNOT, "no terminal");
    ioctl(0, TIOCSCTTY, 0);
    return judge(open("/dev/tty", O_RDONLY), "open /dev/tty");
}

/* Powers given to a file of the work folder. */
static int copy_of_myself(const char *name, int mode) {
    char bytes[65536];
    ssize_t length;
    int from = open("/proc/self/exe", O_RDONLY), to = open(name, O_WRONLY | O_CREAT | O_EXCL, 0700);
    while ((length = read(from, bytes, sizeof bytes)) > 0)
        if (write(to, bytes, length) != length) return -1;
    return length < 0 || fchmod(to, mode) < 0 || close(to) < 0 ? -1 : 0;
}
int a_file_capability(char **arg) {
    (void)arg;
    struct vfs_cap_data cap = {.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE};
    cap.data[0].permitted = 1 << CAP_NET_RAW;
    if (copy_of_myself("capable", 0700) < 0) return end(99, "copy the program");
    return judge(setxattr("capable", "security.capability", &cap, sizeof cap, 0), "give a file a capability");
}
int a_made_setuid(char **arg) {
    if (arg[0]) { /* The copy, started by the one below. */
        errno = EPERM;
        return end(geteuid() != getuid() ? OPEN : CLOSED, "become another by a setuid program of one's own");
    }
    if (copy_of_myself("setuid", 0755) < 0) return end(99, "copy the program");
    if (chown("setuid", 0, 0) < 0) return end(CLOSED, "give a file to root");
    if (chmod("setuid", 04755) < 0) return end(CLOSED, "make it setuid");
    execl("./setuid", "./setuid", "made_setuid", "again", NULL);
    return end(CLOSED, "execute it");
}
/* The folders of the box by others of the same name. */
int a_rename_box(char **arg) {
    const char *names[] = {"work", "in", "out", "secrets", "bin"};
    char from[256], to[256];
    for (int i = 0; i < 5; i++) {
        snprintf(from, sizeof from, "%s/%s", arg[0], names[i]);
        snprintf(to, sizeof to, "%s/gone", arg[0]);
        if (rename(from, to) == 0 || rmdir(from) == 0) return end(OPEN, from);
        if (mkdir("mine", 0700) == 0 && rename("mine", from) == 0) return end(OPEN, from);
        rmdir("mine");
    }
    return end(CLOSED, "move the folders of the box");
}
int a_read_any(char **arg) {
    for (; *arg; arg++)
        if (opens(*arg, O_RDONLY)) return end(OPEN, *arg);
    return end(CLOSED, "read files");
}

/* Not an attack: a neighbour with something to be found by key and name at each place that it may write. */
int a_neighbour(char **arg) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    const char *files[] = {"neighbour", "/tmp/neighbour", "/dev/shm/neighbour", "/var/tmp/neighbour"};
    shmget(atoi(arg[0]), 4096, IPC_CREAT | IPC_EXCL | 0666);
    for (int i = 0; i < 4; i++) {
        int fd = open(files[i], O_WRONLY | O_CREAT, 0666);
        if (fd >= 0) fchmod(fd, 0666);
    }
    strncpy(at.sun_path + 1, arg[1], sizeof at.sun_path - 2);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd >= 0 && bind(fd, (void *)&at, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(arg[1])) == 0) listen(fd, 9);
    puts("up");
    fflush(stdout);
    pause();
    return 0;
}

/* So many MiB of memory that is no process's own, in one way or another. */
int a_hoard(char **arg) {
    static char block[1 << 20];
    int wanted = atoi(arg[1]), fds[2], file = -1;
    if (!strcmp(arg[0], "memfd")) file = syscall(SYS_memfd_create, "hoard", 0);
    if (!strcmp(arg[0], "file")) file = open("/dev/shm/hoard", O_WRONLY | O_CREAT, 0600);
    for (long have = 0; have < (long)wanted << 20;) {
        long more = -1;
        if (file >= 0) more = write(file, block, sizeof block);
        if (!strcmp(arg[0], "system-v")) {
            char *at = shmat(shmget(IPC_PRIVATE, sizeof block, IPC_CREAT | 0600), NULL, 0);
            if (at != (void *)-1) memset(at, 1, more = sizeof block);
        }
        if (!strcmp(arg[0], "pipes") && pipe(fds) == 0) {
            fcntl(fds[1], F_SETFL, O_NONBLOCK);
            for (long length = more = 0; (length = write(fds[1], block, 4096)) > 0;) more += length;
        }
        if (more <= 0) return end(CLOSED, arg[0]);
        have += more;
    }
    return end(OPEN, arg[0]);
}
/* Folders so deep, with names so long; files without content that claim a TiB; more files than there may be. */
int a_litter(char **arg) {
    char name[256];
    int depth = 0, files = 0, top = open(".", O_RDONLY | O_DIRECTORY);
    memset(name, 'n', 255);
    name[255] = 0;
    while (depth < atoi(arg[0]) && mkdir(name, 0700) == 0 && chdir(name) == 0) depth++;
    fchdir(top);
    signal(SIGXFSZ, SIG_IGN);
    int file = open("sparse", O_RDWR | O_CREAT, 0600);
    int sparse = ftruncate(file, 1l << 40) == 0 || pwrite(file, "x", 1, 1l << 40) == 1;
    for (; files < 1000000; files++) {
        snprintf(name, sizeof name, "file%d", files);
        int one = open(name, O_WRONLY | O_CREAT, 0600);
        if (one < 0) break;
        close(one);
    }
    printf("%d deep, %s, %s\n", depth, sparse ? "a TiB" : "no TiB", files < 1000000 ? "no million" : "a million");
    return 0;
}
/* A folder that is a link to /etc every other moment, until killed, and a file in it that is named to be kept. */
int a_swap(char **arg) {
    const char *keep = "{\"@artifact\":\"folder/passwd\"}";
    (void)arg;
    if (mkdir("folder", 0700) < 0 || symlink("/etc", "link") < 0) return 99;
    int file = open("folder/passwd", O_WRONLY | O_CREAT, 0600);
    if (write(file, "mine", 4) != 4 || write(3, keep, strlen(keep)) < 0) return 99;
    if (fork()) return 0;
    setsid();
    for (;;) syscall(SYS_renameat2, AT_FDCWD, "folder", AT_FDCWD, "link", 2 /* exchange */);
}
/* A question to the launcher: an answer counts. */
int a_ask_launcher(char **arg) {
    struct sockaddr_un to = named(arg[0]);
    char answer[65536];
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (fd < 0 || connect(fd, (void *)&to, sizeof to) < 0) return end(CLOSED, "connect to the launcher");
    if (send(fd, "\"info\"", 6, MSG_NOSIGNAL) != 6) return end(CLOSED, "ask the launcher");
    ssize_t length = recv(fd, answer, sizeof answer, 0);
    if (length == 0) errno = ECONNRESET;
    return end(length > 0 ? OPEN : CLOSED, "hear the launcher");
}
