/* Counts what a process does to the files below one folder, and makes one such event fail or fatal.

   Preloaded into a program (LD_PRELOAD), so that it sees the calls of Python and of C++ libraries
   alike. A call is an event where it is of the wanted kind and its path is below GNP_FAULT_UNDER.
   Until that variable is set nothing is counted: a server may be started with this library, and
   its children choose a fault each.

   GNP_FAULT_UNDER  absolute path of the folder
   GNP_FAULT_KIND   change: what changes a file or a folder; read: what opens or reads one
   GNP_FAULT_AT     number of the event, from 1; with 0 events are counted alone
   GNP_FAULT_DO     kill: SIGKILL in the place of the event; torn: the same, after half of a write;
                    a number: the event fails with this errno
   GNP_FAULT_REST   1: every later event fails as well, as on a disk that stays full
   GNP_FAULT_LOG    file that gets a line for each event
*/

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { CHANGE, READ };
enum action { COUNT, KILL, TORN, FAIL };

static struct {
  char under[PATH_MAX];
  size_t length;
  enum kind kind;
  enum action action;
  int error;
  long at;
  int rest;
  int log;
} fault;

static atomic_int is_set;
static atomic_long count;
static pthread_mutex_t setting = PTHREAD_MUTEX_INITIALIZER;

static const char *variable(const char *name) {
  const char *value = getenv(name);
  return value ? value : "";
}

/* Reads the variables once they are there. */
static int set(void) {
  if (atomic_load(&is_set)) return 1;
  if (!getenv("GNP_FAULT_UNDER")) return 0;
  pthread_mutex_lock(&setting);
  if (!atomic_load(&is_set)) {
    const char *action = variable("GNP_FAULT_DO"), *log = variable("GNP_FAULT_LOG");
    snprintf(fault.under, sizeof fault.under, "%s", variable("GNP_FAULT_UNDER"));
    fault.length = strlen(fault.under);
    fault.kind = strcmp(variable("GNP_FAULT_KIND"), "read") ? CHANGE : READ;
    fault.at = atol(variable("GNP_FAULT_AT"));
    fault.rest = atoi(variable("GNP_FAULT_REST"));
    fault.error = atoi(action);
    fault.action = !strcmp(action, "kill") ? KILL : !strcmp(action, "torn") ? TORN : FAIL;
    if (fault.at == 0) fault.action = COUNT;
    fault.log = *log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    atomic_store(&is_set, 1);
  }
  pthread_mutex_unlock(&setting);
  return 1;
}

static int of_descriptor(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return length > 0;
}

static void absolute(int folder, const char *name, char *path) {
  char base[PATH_MAX] = "";
  if (*name != '/') {
    if (folder == AT_FDCWD) {
      if (syscall(SYS_getcwd, base, sizeof base) < 0) *base = 0;
    } else {
      of_descriptor(folder, base);
    }
  }
  snprintf(path, 2 * PATH_MAX, "%s%s%s", base, *base ? "/" : "", name);
}

static int is_below(const char *path) {
  return !strncmp(path, fault.under, fault.length) && (path[fault.length] == '/' || !path[fault.length]);
}

/* Returns whether this event is to fail; kills the process where that is wanted. `half` writes half
   of what the event would have written. */
static int happens(const char *call, const char *path, int descriptor, const void *content, size_t size) {
  long number = atomic_fetch_add(&count, 1) + 1;
  if (fault.log >= 0) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path + fault.length);
    syscall(SYS_write, fault.log, line, (size_t)length);
  }
  int is_it = number == fault.at || (fault.rest && number > fault.at);
  if (!is_it || fault.action == COUNT) return 0;
  if (fault.action == FAIL) {
    errno = fault.error;
    return 1;
  }
  if (fault.action == TORN && content && size > 1) syscall(SYS_write, descriptor, content, size / 2);
  syscall(SYS_kill, getpid(), SIGKILL);
  pause();
  return 1;
}

static int at_path(enum kind kind, const char *call, int folder, const char *name) {
  char path[2 * PATH_MAX];
  int saved = errno;
  if (!set() || kind != fault.kind || !name) return 0;
  absolute(folder, name, path);
  errno = saved;
  return is_below(path) && happens(call, path, -1, NULL, 0);
}

static int at_file(enum kind kind, const char *call, int descriptor, const void *content, size_t size) {
  char path[PATH_MAX];
  int saved = errno;
  if (!set() || kind != fault.kind) return 0;
  int found = of_descriptor(descriptor, path);
  errno = saved;
  return found && is_below(path) && happens(call, path, descriptor, content, size);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static enum kind of_flags(int flags) {
  return (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY ? CHANGE : READ;
}

#define MODE(flags)                                   \
  mode_t mode = 0;                                    \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {            \
    va_list arguments;                                \
    va_start(arguments, flags);                       \
    mode = (mode_t)va_arg(arguments, int);            \
    va_end(arguments);                                \
  }

#define OPEN(name)                                                             \
  int name(const char *path, int flags, ...) {                                 \
    MODE(flags)                                                                \
    if (at_path(of_flags(flags), "open", AT_FDCWD, path)) return -1;           \
    return NEXT(name)(path, flags, mode);                                      \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                           \
  int name(int folder, const char *path, int flags, ...) {                     \
    MODE(flags)                                                                \
    if (at_path(of_flags(flags), "open", folder, path)) return -1;             \
    return NEXT(name)(folder, path, flags, mode);                              \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                            \
  FILE *name(const char *path, const char *mode) {                             \
    enum kind kind = strpbrk(mode, "wa+") ? CHANGE : READ;                     \
    if (at_path(kind, "open", AT_FDCWD, path)) return NULL;                    \
    return NEXT(name)(path, mode);                                             \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define ON_PATH(kind, result, failed, name, parameters, arguments, folder, path) \
  result name parameters {                                                     \
    if (at_path(kind, #name, folder, path)) return failed;                     \
    return NEXT(name) arguments;                                               \
  }
ON_PATH(CHANGE, int, -1, creat, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_PATH(CHANGE, int, -1, rename, (const char *old, const char *new), (old, new), AT_FDCWD, new)
ON_PATH(CHANGE, int, -1, renameat, (int from, const char *old, int to, const char *new), (from, old, to, new), to, new)
ON_PATH(CHANGE, int, -1, renameat2, (int from, const char *old, int to, const char *new, unsigned flags), (from, old, to, new, flags), to, new)
ON_PATH(CHANGE, int, -1, mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_PATH(CHANGE, int, -1, mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), folder, path)
ON_PATH(CHANGE, int, -1, unlink, (const char *path), (path), AT_FDCWD, path)
ON_PATH(CHANGE, int, -1, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder, path)
ON_PATH(CHANGE, int, -1, rmdir, (const char *path), (path), AT_FDCWD, path)
ON_PATH(CHANGE, int, -1, truncate, (const char *path, off_t size), (path, size), AT_FDCWD, path)
ON_PATH(CHANGE, int, -1, link, (const char *old, const char *new), (old, new), AT_FDCWD, new)
ON_PATH(CHANGE, int, -1, linkat, (int from, const char *old, int to, const char *new, int flags), (from, old, to, new, flags), to, new)
ON_PATH(CHANGE, int, -1, symlink, (const char *old, const char *new), (old, new), AT_FDCWD, new)
ON_PATH(READ, DIR *, NULL, opendir, (const char *path), (path), AT_FDCWD, path)

#define ON_FILE(kind, result, name, parameters, arguments, content, size)      \
  result name parameters {                                                     \
    if (at_file(kind, #name, descriptor, content, size)) return -1;            \
    return NEXT(name) arguments;                                               \
  }
ON_FILE(CHANGE, ssize_t, write, (int descriptor, const void *data, size_t size), (descriptor, data, size), data, size)
ON_FILE(CHANGE, ssize_t, pwrite, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at), NULL, 0)
ON_FILE(CHANGE, ssize_t, pwrite64, (int descriptor, const void *data, size_t size, off64_t at), (descriptor, data, size, at), NULL, 0)
ON_FILE(CHANGE, ssize_t, writev, (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count), parts->iov_base, parts->iov_len)
ON_FILE(CHANGE, ssize_t, pwritev, (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at), NULL, 0)
ON_FILE(CHANGE, int, fsync, (int descriptor), (descriptor), NULL, 0)
ON_FILE(CHANGE, int, fdatasync, (int descriptor), (descriptor), NULL, 0)
ON_FILE(CHANGE, int, ftruncate, (int descriptor, off_t size), (descriptor, size), NULL, 0)
ON_FILE(CHANGE, int, ftruncate64, (int descriptor, off64_t size), (descriptor, size), NULL, 0)
ON_FILE(READ, ssize_t, read, (int descriptor, void *data, size_t size), (descriptor, data, size), NULL, 0)
ON_FILE(READ, ssize_t, pread, (int descriptor, void *data, size_t size, off_t at), (descriptor, data, size, at), NULL, 0)
ON_FILE(READ, ssize_t, pread64, (int descriptor, void *data, size_t size, off64_t at), (descriptor, data, size, at), NULL, 0)
ON_FILE(READ, ssize_t, readv, (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count), NULL, 0)
ON_FILE(READ, ssize_t, preadv, (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at), NULL, 0)
