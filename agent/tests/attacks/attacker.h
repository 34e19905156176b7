/* What the attacks share: how one ends, and how its end is judged. */
#ifndef ATTACKER_H
#define ATTACKER_H
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { OPEN = 10, CLOSED = 20, CANNOT = 30 };

static inline int end(int code, const char *what) {
    printf("%s: %s\n", what, code == OPEN ? "done" : strerror(errno));
    return code;
}

/* A call that did its work if it returned no error. */
static inline int judge(long rc, const char *what) { return end(rc >= 0 ? OPEN : CLOSED, what); }

/* A call with arguments that no kernel takes: its code was reached unless the answer is that of a filter. */
static inline int reached(long rc, const char *what) {
    return end(rc < 0 && (errno == EPERM || errno == ENOSYS || errno == EACCES) ? CLOSED : OPEN, what);
}

/* The attacks of escapes.c. */
int a_unix_socket(char **arg);
int a_unix_datagram(char **arg);
int a_packets(char **arg);
int a_fifo(char **arg);
int a_group_files(char **arg);
int a_mount_groups(char **arg);
int a_kernel_files(char **arg);
int a_devices(char **arg);
int a_open_processes(char **arg);
int a_x32(char **arg);
int a_own_terminal(char **arg);
int a_tty(char **arg);
int a_file_capability(char **arg);
int a_made_setuid(char **arg);
int a_rename_box(char **arg);
int a_read_any(char **arg);
int a_neighbour(char **arg);
int a_hoard(char **arg);
int a_litter(char **arg);
int a_swap(char **arg);
int a_ask_launcher(char **arg);
#endif
