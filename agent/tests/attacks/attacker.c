/* The attacks, one function each, as a static program (with those of escapes.c) that the tests start inside the sandbox (and some outside).
 * An attack ends with OPEN if it did its harm, CLOSED if it was refused, CANNOT if this kernel has no such thing.
 * The last line that it prints says what happened. Nothing here harms the machine if it succeeds. */
#include "attacker.h"
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <arpa/inet.h>
#include <unistd.h>

/* Files. */
static int a_read(char **arg) {
    char byte;
    int fd = open(arg[0], O_RDONLY);
    return judge(fd < 0 ? -1 : read(fd, &byte, 1), "read");
}
static int a_write(char **arg) { return judge(open(arg[0], O_WRONLY), "open for writing"); }
static int a_create(char **arg) { return judge(open(arg[0], O_WRONLY | O_CREAT | O_EXCL, 0600), "create"); }
static int a_device(char **arg) { return judge(open(arg[0], O_RDONLY | O_NOCTTY), "open the device"); }
static int a_mknod(char **arg) {
    (void)arg;
    return judge(mknod("node", S_IFCHR | 0666, makedev(1, 11)), "mknod");
}
static int a_hard_link(char **arg) { return judge(linkat(AT_FDCWD, arg[0], AT_FDCWD, "link", 0), "link"); }
static int a_handle(char **arg) {
    (void)arg;
    struct { struct file_handle head; char rest[128]; } handle = {.head = {.handle_bytes = 128}};
    int mount;
    return judge(name_to_handle_at(AT_FDCWD, "/usr", &handle.head, &mount, 0), "name_to_handle_at");
}
static int a_setuid_program(char **arg) {
    if (arg[1]) { /* The program itself, started by the one below. */
        errno = EPERM;
        return end(geteuid() == 0 && getuid() != 0 ? OPEN : CLOSED, "become root by a setuid program");
    }
    execl(arg[0], arg[0], "setuid_program", "x", "again", NULL);
    return end(CLOSED, "execute the setuid program");
}

/* Descriptors and environment. */
static int a_leaked_descriptor(char **arg) {
    (void)arg;
    struct stat info;
    for (int fd = 4; fd < 1024; fd++)
        if (fstat(fd, &info) == 0) return end(OPEN, "find a descriptor above 3");
    errno = EBADF;
    return end(CLOSED, "find a descriptor above 3");
}
static int a_leaked_variable(char **arg) { errno = ENOENT; return end(getenv(arg[0]) ? OPEN : CLOSED, "read a variable"); }

/* Other processes. */
static int a_see(char **arg) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/status", arg[0]);
    return judge(open(path, O_RDONLY), "see the process");
}
static int a_signal(char **arg) { return judge(kill(atoi(arg[0]), 0), "signal the process"); }
static pid_t child(void) {
    pid_t pid = fork();
    if (pid == 0) { pause(); _exit(0); }
    return pid;
}
static int a_ptrace(char **arg) {
    (void)arg;
    pid_t pid = child();
    int code = judge(ptrace(PTRACE_SEIZE, pid, 0, 0), "ptrace");
    kill(pid, SIGKILL);
    return code;
}
static int a_read_memory(char **arg) {
    (void)arg;
    static char mine[8], its[8] = "x";
    pid_t pid = child();
    struct iovec here = {mine, 8}, there = {its, 8};
    int code = judge(process_vm_readv(pid, &here, 1, &there, 1, 0), "process_vm_readv");
    kill(pid, SIGKILL);
    return code;
}
static int a_take_descriptor(char **arg) {
    (void)arg;
    pid_t pid = child();
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    int code = judge(syscall(438 /* pidfd_getfd */, pidfd, 1, 0), "pidfd_getfd");
    kill(pid, SIGKILL);
    return code;
}
/* The one that all processes of an attempt descend from has their uid. Its memory, program and variables: */
static int a_open_init(char **arg) {
    (void)arg;
    const char *files[] = {"/proc/1/mem", "/proc/1/environ", "/proc/1/exe", "/proc/1/maps", "/proc/1/fd/0", "/proc/1/root/etc"};
    char byte;
    for (int i = 0; i < 6; i++) {
        int fd = open(files[i], O_RDONLY);
        if (fd >= 0 && (i > 1 || pread(fd, &byte, 1, 0) >= 0)) return end(OPEN, files[i]);
    }
    return end(CLOSED, "look into init");
}
static int a_shared_memory(char **arg) { return judge(shmget(atoi(arg[0]), 1, 0), "find shared memory"); }
static int a_make_shared_memory(char **arg) {
    int id = shmget(atoi(arg[0]), 4096, IPC_CREAT | IPC_EXCL | 0666);
    printf("%d\n", id);
    return id < 0 ? CLOSED : OPEN;
}

/* Namespaces and mounts. */
static int a_unshare(char **arg) { (void)arg; return judge(unshare(CLONE_NEWUSER), "unshare"); }
static int a_clone(char **arg) {
    (void)arg;
    long pid = syscall(SYS_clone, CLONE_NEWUSER | CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return judge(pid, "clone");
}
static int a_clone3(char **arg) {
    (void)arg;
    uint64_t args[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long pid = syscall(435 /* clone3 */, args, sizeof args);
    if (pid == 0) _exit(0);
    return judge(pid, "clone3");
}
static int a_setns(char **arg) { (void)arg; return judge(setns(open("/proc/self/ns/uts", O_RDONLY), 0), "setns"); }
static int a_mount(char **arg) { (void)arg; return judge(mount("none", "/tmp", "tmpfs", 0, NULL), "mount"); }
static int a_mount_new(char **arg) { (void)arg; return judge(syscall(430 /* fsopen */, "tmpfs", 0), "fsopen"); }
static int a_remount(char **arg) {
    (void)arg;
    return judge(mount(NULL, "/run/sally/box/in", NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV, NULL), "mount for writing");
}
static int a_chroot(char **arg) { (void)arg; return judge(chroot("."), "chroot"); }
static int a_pivot_root(char **arg) { (void)arg; return reached(syscall(SYS_pivot_root, "/", "/"), "pivot_root"); }

/* Network. */
static int a_socket(char **arg) {
    int fd = socket(atoi(arg[0]), atoi(arg[1]), atoi(arg[2]));
    if (fd < 0 && (errno == EAFNOSUPPORT || errno == EPROTONOSUPPORT)) return end(CANNOT, "socket");
    return judge(fd, "socket");
}
static int a_tcp(char **arg) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(arg[1]))};
    inet_pton(AF_INET, arg[0], &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return judge(fd < 0 ? -1 : connect(fd, (void *)&to, sizeof to), "connect");
}
static int a_udp(char **arg) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(arg[1]))};
    inet_pton(AF_INET, arg[0], &to.sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return judge(fd < 0 ? -1 : sendto(fd, "x", 1, 0, (void *)&to, sizeof to), "send");
}
static int a_listen(char **arg) {
    (void)arg;
    struct sockaddr_in at = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return judge(fd < 0 ? -1 : bind(fd, (void *)&at, sizeof at), "bind");
}
static int a_abstract_socket(char **arg) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path + 1, arg[0], sizeof to.sun_path - 2);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return judge(connect(fd, (void *)&to, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(arg[0])), "connect");
}

/* An answer counts, not a connection: a byte of the other side. */
static socklen_t address(char **arg, struct sockaddr_storage *at) {
    struct sockaddr_in *v4 = (void *)at;
    struct sockaddr_in6 *v6 = (void *)at;
    memset(at, 0, sizeof *at);
    if (strchr(arg[0], ':')) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(atoi(arg[1]));
        inet_pton(AF_INET6, arg[0], &v6->sin6_addr);
        return sizeof *v6;
    }
    v4->sin_family = AF_INET;
    v4->sin_port = htons(atoi(arg[1]));
    inet_pton(AF_INET, arg[0], &v4->sin_addr);
    return sizeof *v4;
}
static int answered(int fd) {
    char byte;
    struct timeval limit = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ssize_t length = recv(fd, &byte, 1, 0);
    if (length == 0) errno = ECONNRESET;
    return length == 1;
}
static int ask(char **arg, int type, int protocol, int flags, const char *what) {
    struct sockaddr_storage to;
    socklen_t length = address(arg, &to);
    int fd = socket(to.ss_family, type, protocol);
    if (fd < 0 && (errno == EPROTONOSUPPORT || errno == ENOPROTOOPT)) return end(CANNOT, what);
    if (fd < 0) return end(CLOSED, what);
    if (flags ? sendto(fd, "x", 1, flags, (void *)&to, length) < 0 : connect(fd, (void *)&to, length) < 0)
        return end(CLOSED, what);
    if (type == SOCK_DGRAM && send(fd, "x", 1, 0) < 0) return end(CLOSED, what);
    return end(answered(fd) ? OPEN : CLOSED, what);
}
static int a_answer(char **arg) { return ask(arg, SOCK_STREAM, 0, 0, "get an answer by TCP"); }
static int a_answer_udp(char **arg) { return ask(arg, SOCK_DGRAM, 0, 0, "get an answer by UDP"); }
static int a_answer_mptcp(char **arg) { return ask(arg, SOCK_STREAM, 262, 0, "get an answer by MPTCP"); }
static int a_answer_at_once(char **arg) { return ask(arg, SOCK_STREAM, 0, MSG_FASTOPEN, "get an answer by fast open"); }
/* So many connections, all held: how many are answered within the second that follows? */
static int a_many(char **arg) {
    struct sockaddr_storage to;
    socklen_t length = address(arg, &to);
    int fds[256], count = atoi(arg[2]), answers = 0;
    for (int i = 0; i < count; i++) {
        fds[i] = socket(to.ss_family, SOCK_STREAM, 0);
        if (connect(fds[i], (void *)&to, length) < 0) return end(CLOSED, "connect");
    }
    for (int tries = 0; tries < 40; tries++, usleep(50000))
        for (int i = 0; i < count; i++) {
            char byte;
            if (fds[i] >= 0 && recv(fds[i], &byte, 1, MSG_DONTWAIT) == 1) answers++;
        }
    printf("%d answers\n", answers);
    return 0;
}
/* The answer to a question for a name, made of the question: names that begin with "dns" have one address. */
static int name_answer(unsigned char *packet, int length) {
    static const unsigned char address[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 99, 0, 1};
    int at = 12;
    while (at < length && packet[at]) at += packet[at] + 1;
    int known = packet[12] == 3 && !memcmp(packet + 13, "dns", 3), wanted = packet[at + 2] == 1;
    packet[2] = 0x81;
    packet[3] = known ? 0x80 : 0x83;
    memset(packet + 6, 0, 6);
    length = at + 5;
    if (known && wanted) {
        packet[7] = 1;
        memcpy(packet + length, address, sizeof address);
        length += sizeof address;
    }
    return length;
}
/* A network to be attacked: on two ports TCP that greets and keeps the connection, on the first UDP that answers, an
 * abstract socket, one that is a file, and a server of names. It says when it is up, and dies with whoever started it. */
static int a_world(char **arg) {
    int on = 1, off = 0;
    struct pollfd fds[4];
    /* A death signal of a parent that has become another user would not be allowed to come. */
    pid_t parent = getppid();
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 4; i++) {
        struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons(i < 3 ? atoi(arg[i % 2]) : 53)};
        fds[i].fd = socket(AF_INET6, i < 2 ? SOCK_STREAM : SOCK_DGRAM, 0);
        fds[i].events = POLLIN;
        setsockopt(fds[i].fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        setsockopt(fds[i].fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        if (bind(fds[i].fd, (void *)&at, sizeof at) < 0 || (i < 2 && listen(fds[i].fd, 256) < 0))
            return end(CLOSED, "serve");
    }
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path + 1, arg[2]);
    int hidden = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(hidden, (void *)&name, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(arg[2])) < 0 || listen(hidden, 9) < 0)
        return end(CLOSED, "serve");
    struct sockaddr_un file = {.sun_family = AF_UNIX};
    strncpy(file.sun_path, arg[3], sizeof file.sun_path - 1);
    int named = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(named, (void *)&file, sizeof file) < 0 || chmod(arg[3], 0777) < 0 || listen(named, 9) < 0)
        return end(CLOSED, "serve");
    puts("up");
    fflush(stdout);
    close(1);
    for (;;) {
        char byte;
        struct sockaddr_storage from;
        socklen_t length = sizeof from;
        unsigned char packet[1024];
        poll(fds, 4, 500);
        if (getppid() != parent) return 0;
        for (int i = 0; i < 2; i++)
            if (fds[i].revents) send(accept(fds[i].fd, 0, 0), "!", 1, MSG_NOSIGNAL);
        if (fds[2].revents && recvfrom(fds[2].fd, &byte, 1, 0, (void *)&from, &length) >= 0)
            sendto(fds[2].fd, "!", 1, 0, (void *)&from, length);
        if (!fds[3].revents) continue;
        length = sizeof from;
        ssize_t asked = recvfrom(fds[3].fd, packet, 512, 0, (void *)&from, &length);
        if (asked > 16) sendto(fds[3].fd, packet, name_answer(packet, asked), 0, (void *)&from, length);
    }
}
/* A neighbour that can be connected to by whoever sees its abstract socket. */
static int a_abstract_server(char **arg) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path + 1, arg[0], sizeof at.sun_path - 2);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(fd, (void *)&at, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(arg[0])) < 0 || listen(fd, 1) < 0)
        return end(CLOSED, "serve");
    puts("serving");
    fflush(stdout);
    pause();
    return 0;
}

/* The kernel. */
static int a_bpf(char **arg) { (void)arg; return reached(syscall(SYS_bpf, 9999, 0, 0), "bpf"); }
static int a_perf(char **arg) { (void)arg; return reached(syscall(SYS_perf_event_open, 1, 0, -1, -1, 0), "perf_event_open"); }
static int a_userfaultfd(char **arg) { (void)arg; return judge(syscall(SYS_userfaultfd, 1 /* user mode only */), "userfaultfd"); }
static int a_io_uring(char **arg) {
    (void)arg;
    char params[256] = {0};
    long fd = syscall(425 /* io_uring_setup */, 1, params);
    return fd < 0 && errno == ENOSYS && arg[0] ? end(CANNOT, "io_uring_setup") : judge(fd, "io_uring_setup");
}
static int a_memfd_secret(char **arg) { (void)arg; return judge(syscall(447 /* memfd_secret */, 0), "memfd_secret"); }
static int a_keys(char **arg) {
    (void)arg;
    return judge(syscall(SYS_add_key, "user", "sally", "x", 1, -2 /* process keyring */), "add_key");
}
static int a_personality(char **arg) { (void)arg; return judge(personality(READ_IMPLIES_EXEC), "personality"); }
static int a_hostname(char **arg) { (void)arg; return judge(sethostname("attacked", 8), "sethostname"); }
static int a_foreign_table(char **arg) {
    (void)arg;
#ifdef __x86_64__
    long rc;
    __asm__ volatile("int $0x80" : "=a"(rc) : "a"(20 /* getpid */) : "memory", "r8", "r9", "r10", "r11");
    errno = ENOSYS;
    return end(rc > 0 ? OPEN : CANNOT, "getpid by int 0x80");
#else
    return end(CANNOT, "int 0x80");
#endif
}
/* Each with arguments that do nothing even for root. */
static int a_host_settings(char **arg) {
    (void)arg;
    struct { const char *name; long rc; int error; } tries[] = {
#define TRY(name, ...) {name, (errno = 0, syscall(__VA_ARGS__)), errno}
        TRY("init_module", SYS_init_module, 0, 0, 0), TRY("finit_module", SYS_finit_module, -1, 0, 0),
        TRY("delete_module", SYS_delete_module, "", 0), TRY("kexec_load", SYS_kexec_load, 0, 0, 0, -1),
        TRY("reboot", SYS_reboot, 0, 0, 0, 0), TRY("swapon", SYS_swapon, 0, 0), TRY("swapoff", SYS_swapoff, 0),
        TRY("settimeofday", SYS_settimeofday, 0, 0), TRY("clock_settime", SYS_clock_settime, -1, 0),
        TRY("clock_adjtime", SYS_clock_adjtime, 0, 0), TRY("adjtimex", SYS_adjtimex, 0),
        TRY("setdomainname", SYS_setdomainname, 0, -1), TRY("quotactl", SYS_quotactl, -1, 0, 0, 0),
        TRY("acct", SYS_acct, "/nowhere"), TRY("syslog", SYS_syslog, 2, 0, 0),
        TRY("open_by_handle_at", SYS_open_by_handle_at, -1, 0, 0),
    };
    for (unsigned i = 0; i < sizeof tries / sizeof *tries; i++) {
        errno = tries[i].error;
        if (tries[i].rc >= 0 || tries[i].error != EPERM) return end(OPEN, tries[i].name);
    }
    return end(CLOSED, "all of them");
}

/* The terminal that standard input may be: taken as the controlling one, then typed into. */
static int a_terminal(char **arg) {
    unsigned long high = arg[0] ? 0x100000000ul : 0;
    if (!isatty(0)) return end(CANNOT, "no terminal");
    ioctl(0, TIOCSCTTY, 0);
    return judge(syscall(SYS_ioctl, 0, TIOCSTI | high, "x"), "TIOCSTI");
}
static int a_console(char **arg) {
    (void)arg;
    char paste = 3;
    return reached(ioctl(0, 0x541c /* TIOCLINUX */, &paste), "TIOCLINUX");
}

/* Not an attack: something to be seen and signalled. */
static int a_wait(char **arg) {
    (void)arg;
    puts("waiting");
    fflush(stdout);
    pause();
    return 0;
}

#define ATTACK(name) {#name, a_##name}
static const struct { const char *name; int (*run)(char **); } attacks[] = {
    ATTACK(read), ATTACK(write), ATTACK(create), ATTACK(device), ATTACK(mknod), ATTACK(hard_link), ATTACK(handle),
    ATTACK(setuid_program), ATTACK(leaked_descriptor), ATTACK(leaked_variable), ATTACK(see), ATTACK(signal),
    ATTACK(ptrace), ATTACK(read_memory), ATTACK(take_descriptor), ATTACK(open_init), ATTACK(shared_memory),
    ATTACK(make_shared_memory), ATTACK(unshare), ATTACK(clone), ATTACK(clone3), ATTACK(setns), ATTACK(mount),
    ATTACK(mount_new), ATTACK(remount), ATTACK(chroot), ATTACK(pivot_root), ATTACK(socket), ATTACK(tcp), ATTACK(udp),
    ATTACK(listen), ATTACK(abstract_socket), ATTACK(answer), ATTACK(answer_udp), ATTACK(answer_mptcp),
    ATTACK(answer_at_once), ATTACK(many), ATTACK(world), ATTACK(abstract_server), ATTACK(bpf), ATTACK(perf), ATTACK(userfaultfd), ATTACK(io_uring),
    ATTACK(memfd_secret), ATTACK(keys), ATTACK(personality), ATTACK(hostname),
    ATTACK(foreign_table), ATTACK(host_settings), ATTACK(terminal), ATTACK(console), ATTACK(wait),
    ATTACK(unix_socket), ATTACK(unix_datagram), ATTACK(packets), ATTACK(fifo), ATTACK(group_files), ATTACK(mount_groups),
    ATTACK(kernel_files), ATTACK(devices), ATTACK(open_processes), ATTACK(x32), ATTACK(own_terminal), ATTACK(tty),
    ATTACK(file_capability), ATTACK(made_setuid), ATTACK(rename_box), ATTACK(read_any), ATTACK(neighbour), ATTACK(hoard), ATTACK(litter),
    ATTACK(swap), ATTACK(ask_launcher),
};

int main(int argc, char **argv) {
    for (unsigned i = 0; argc > 1 && i < sizeof attacks / sizeof *attacks; i++)
        if (!strcmp(attacks[i].name, argv[1])) return attacks[i].run(argv + 2);
    fprintf(stderr, "no such attack\n");
    return 99;
}
