"""Linux's system calls by name, and what the code of a model may do with them.

The numbers are those of x86-64 and, after the second colon, of ARM64 (asm/unistd_64.h and
asm-generic/unistd.h); a call that an architecture lacks has none.
"""

from __future__ import annotations

MACHINES = ("x86_64", "aarch64")  # as uname names them

# May be called with any arguments: they act on this process, its descriptors, or files, which
# Landlock guards.
_FREE = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69
pwritev:296:70 preadv2:327:286 pwritev2:328:287 lseek:8:62 close:3:57 dup:32:23 dup2:33:
dup3:292:24 pipe:22: pipe2:293:59 sendfile:40:71 copy_file_range:326:285 fallocate:285:47
ftruncate:77:46 fsync:74:82 fdatasync:75:83 poll:7: ppoll:271:73 select:23: pselect6:270:72
epoll_create:213: epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232: epoll_pwait:281:22
epoll_pwait2:441:441 eventfd:284: eventfd2:290:19 open:2: openat:257:56 stat:4: lstat:6:
fstat:5:80 newfstatat:262:79 statx:332:291 access:21: faccessat:269:48 faccessat2:439:439
getdents:78: getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83: mkdirat:258:34
rmdir:84: unlink:87: unlinkat:263:35 rename:82: renameat:264:38 renameat2:316:276 link:86:
linkat:265:37 symlink:88: symlinkat:266:36 readlink:89: readlinkat:267:78 umask:95:166
statfs:137:43 fstatfs:138:44 mmap:9:222 munmap:11:215 mremap:25:216 mprotect:10:226
madvise:28:233 brk:12:214 msync:26:227 membarrier:324:283 futex:202:98 set_robust_list:273:99
rseq:334:293 set_tid_address:218:96 gettid:186:178 sched_yield:24:124
sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 arch_prctl:158: exit:60:93
exit_group:231:94 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113
clock_getres:229:114 gettimeofday:96:169 time:201: getitimer:36:102 setitimer:38:103 alarm:37:
pause:34: rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 restart_syscall:219:128
getpid:39:172 getppid:110:173 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177
getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgrp:111: getpgid:121:155
getsid:124:156 uname:63:160 sysinfo:99:179 getrusage:98:165 getrlimit:97:163 times:100:153
getrandom:318:278 getpriority:140:141 recvfrom:45:207 shutdown:48:210 getsockname:51:204
getpeername:52:205 getsockopt:55:209
"""

# May be called with some arguments: `seccomp` says which.
_CHECKED = """
clone:56:220 fcntl:72:25 ioctl:16:29 kill:62:129 tgkill:234:131 prctl:157:167
prlimit64:302:261 socketpair:53:199 sendto:44:206
"""

# Do nothing and succeed. Landlock does not guard what they change: the interpreter's files may be
# the same user's.
_IDLE = """
chmod:90: fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 chown:92: fchown:93:55 lchown:94:
fchownat:260:54 utime:132: utimes:235: utimensat:280:88 futimesat:261:
"""

# What a file system without them answers, which programs expect.
_UNSUPPORTED = """
getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12
flistxattr:196:13 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 removexattr:197:14
lremovexattr:198:15 fremovexattr:199:16
"""

# Raise PermissionError. All others do not exist.
_DENIED = """
execve:59:221 execveat:322:281 fork:57: vfork:58: socket:41:198 connect:42:203 bind:49:200
listen:50:201 accept:43:202 accept4:288:242 sendmsg:46:211 recvmsg:47:212 sendmmsg:307:269
recvmmsg:299:243 tkill:200:130 ptrace:101:117 setsid:112:157 setpgid:109:154 unshare:272:97
setns:308:268 mount:165:40 chroot:161:51 truncate:76:45 mknod:133: mknodat:259:33
setuid:105:146 setgid:106:144 sched_setaffinity:203:122 setpriority:141:140 flock:73:32
"""


def _numbers(table: str, machine: str) -> dict[str, int]:
    column = MACHINES.index(machine) + 1
    rows = (row.split(":") for row in table.split())
    return {row[0]: int(row[column]) for row in rows if row[column]}


def free(machine: str) -> dict[str, int]:
    """The numbers of those that may be called with any arguments."""
    return _numbers(_FREE, machine)


def checked(machine: str) -> dict[str, int]:
    """Those whose arguments are looked at."""
    return _numbers(_CHECKED, machine)


def idle(machine: str) -> dict[str, int]:
    """Those that do nothing and succeed."""
    return _numbers(_IDLE, machine)


def unsupported(machine: str) -> dict[str, int]:
    """Those of extended attributes."""
    return _numbers(_UNSUPPORTED, machine)


def denied(machine: str) -> dict[str, int]:
    """Those that raise PermissionError."""
    return _numbers(_DENIED, machine)
