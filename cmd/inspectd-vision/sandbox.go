//go:build gocv_specific_modules

package main

import (
	"fmt"
	"os"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// allowed are the system calls that decoding and measuring need: memory, threads,
// clocks, and reading and writing descriptors that are open already. Nothing that
// opens, connects, executes or signals others. Everything else fails with EPERM.
var allowed = []string{
	"brk", "mmap", "munmap", "mremap", "mprotect", "madvise",
	"read", "pread64", "readv", "write", "writev", "close", "lseek", "fstat", "newfstatat", "fcntl",
	"recvmsg", "sendmsg", "recvfrom", "sendto", "shutdown", "getsockopt", "setsockopt", "getsockname", "getpeername",
	"epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2", "pipe2", "poll", "ppoll",
	"futex", "clone", "clone3", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "gettid", "getpid", "tgkill",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
	"nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday", "timer_create", "timer_settime", "timer_delete", "setitimer",
	"getrusage", "sysinfo", "uname", "getrandom", "prlimit64", "exit", "exit_group", "memfd_create",
}

// lockIn gives up everything the worker does not need and returns the layers that
// are active. Landlock is used as far as the kernel has it; without seccomp the
// worker refuses to run.
func lockIn() ([]string, error) {
	// First to go when memory runs short; being refused this is no reason to stop.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("800"), 0)
	for _, l := range []struct {
		resource int
		max      uint64
	}{
		{unix.RLIMIT_DATA, 900 << 20}, // passes 12 megapixels, refuses a bomb of a gigabyte
		{unix.RLIMIT_FSIZE, 0},
		{unix.RLIMIT_NOFILE, 64},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_CPU, 3600}, // seconds; ends a worker whose daemon died while it hung
	} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.max, Max: l.max}); err != nil {
			return nil, fmt.Errorf("resource limits: %w", err)
		}
	}
	layers := []string{"rlimits"}
	if err := landlock.V8.BestEffort().Restrict(); err != nil {
		return nil, fmt.Errorf("landlock: %w", err)
	}
	if abi := landlockABI(); abi > 0 {
		layers = append(layers, fmt.Sprintf("landlock v%d", abi))
	}
	if !seccomp.Supported() {
		return nil, fmt.Errorf("this kernel has no seccomp")
	}
	filter := seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionErrno, // EPERM
		Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionAllow, Names: allowed}},
	}}
	if err := seccomp.LoadFilter(filter); err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	return append(layers, "seccomp"), nil
}

// landlockABI is the version of Landlock the kernel offers, 0 if none.
func landlockABI() int {
	const createRulesetVersion = 1
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, createRulesetVersion)
	if errno != 0 {
		return 0
	}
	return int(n)
}
