;; What a program that was compiled for WASI's first preview asks of a system, answered without one. It is joined to
;; components of Go, and to those of C and Zig that use such a part of their libraries, so that they import nothing but
;; the contract's interfaces.
;;
;; The clock stands still, random bytes are always the same, what is printed is dropped, there are no arguments, no
;; environment and no files. What waits or exits traps. All of it is a function of the arguments alone.
(module
  (import "env" "memory" (memory 0))

  (func (export "sched_yield") (result i32) (i32.const 0))
  (func (export "proc_exit") (param i32) unreachable)
  (func (export "poll_oneoff") (param i32 i32 i32 i32) (result i32) unreachable)

  ;; No arguments and no environment: none, and 0 bytes.
  (func $none (param i32 i32) (result i32)
    (i32.store (local.get 0) (i32.const 0))
    (i32.store (local.get 1) (i32.const 0))
    (i32.const 0))
  (export "args_sizes_get" (func $none))
  (export "environ_sizes_get" (func $none))
  (func $nothing (param i32 i32) (result i32) (i32.const 0))
  (export "args_get" (func $nothing))
  (export "environ_get" (func $nothing))

  ;; Every clock is at 1 ns: some runtimes take 0 for a clock that does not work.
  (func (export "clock_time_get") (param i32 i64 i32) (result i32)
    (i64.store align=1 (local.get 2) (i64.const 1))
    (i32.const 0))

  (func (export "random_get") (param $to i32) (param $bytes i32) (result i32)
    (memory.fill (local.get $to) (i32.const 0x5a) (local.get $bytes))
    (i32.const 0))

  ;; All that is to be written was written: the sum of the lengths of the list of (address, length).
  (func (export "fd_write") (param $file i32) (param $list i32) (param $count i32) (param $written i32) (result i32)
    (local $bytes i32)
    (block $end
      (loop $next
        (br_if $end (i32.eqz (local.get $count)))
        (local.set $bytes (i32.add (local.get $bytes) (i32.load offset=4 (local.get $list))))
        (local.set $list (i32.add (local.get $list) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $next)))
    (i32.store (local.get $written) (local.get $bytes))
    (i32.const 0))

  (func (export "clock_res_get") (param i32 i32) (result i32)
    (i64.store align=1 (local.get 1) (i64.const 1))
    (i32.const 0))
  (func (export "proc_raise") (param i32) (result i32) unreachable)

  ;; No file is open, so each of these has one that is not: 8 is EBADF. Libraries import them for programs that never call
  ;; them, or that take an error for an answer.
  (func $file (param i32) (result i32) (i32.const 8))
  (export "fd_close" (func $file))
  (export "fd_datasync" (func $file))
  (export "fd_sync" (func $file))
  (func $file_1 (param i32 i32) (result i32) (i32.const 8))
  (export "fd_fdstat_get" (func $file_1))
  (export "fd_fdstat_set_flags" (func $file_1))
  (export "fd_filestat_get" (func $file_1))
  (export "fd_prestat_get" (func $file_1))
  (export "fd_renumber" (func $file_1))
  (export "fd_tell" (func $file_1))
  (export "sock_shutdown" (func $file_1))
  (func $file_2 (param i32 i32 i32) (result i32) (i32.const 8))
  (export "fd_prestat_dir_name" (func $file_2))
  (export "path_create_directory" (func $file_2))
  (export "path_remove_directory" (func $file_2))
  (export "path_unlink_file" (func $file_2))
  (export "sock_accept" (func $file_2))
  (func (export "fd_read") (param i32 i32 i32 i32) (result i32) (i32.const 8))
  (func $file_4 (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (export "path_filestat_get" (func $file_4))
  (export "path_symlink" (func $file_4))
  (export "sock_send" (func $file_4))
  (func $file_5 (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (export "path_readlink" (func $file_5))
  (export "path_rename" (func $file_5))
  (export "sock_recv" (func $file_5))
  (func (export "path_link") (param i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) (i32.const 8))
  (func (export "path_filestat_set_times") (param i32 i32 i32 i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_advise") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_allocate") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_fdstat_set_rights") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_size") (param i32 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_times") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func $file_at (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (export "fd_pread" (func $file_at))
  (export "fd_pwrite" (func $file_at))
  (export "fd_readdir" (func $file_at))
  (func (export "fd_seek") (param i32 i64 i32 i32) (result i32) (i32.const 8)))
