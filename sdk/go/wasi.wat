;; What Go's runtime asks of the system, answered without one: a plugin has no files, no arguments, no environment and no clock but
;; the daemon's. It becomes part of the component, which then imports nothing but the contract's interfaces.
(module
  (import "env" "memory" (memory 0))

  ;; Nanoseconds. It only has to go forward: the runtime measures its garbage collector by it.
  (global $clock (mut i64) (i64.const 1000000000))
  ;; What the runtime seeds its maps with. Nothing in a plugin may depend on chance.
  (global $noise (mut i64) (i64.const 0x9e3779b97f4a7c15))

  ;; 0 is success, 8 a bad file descriptor, and 52 that there is no such function.
  (func (export "args_sizes_get") (param $count i32) (param $bytes i32) (result i32)
    (call $zero (local.get $count)) (call $zero (local.get $bytes)) (i32.const 0))
  (func (export "args_get") (param i32 i32) (result i32) (i32.const 0))
  (func (export "environ_sizes_get") (param $count i32) (param $bytes i32) (result i32)
    (call $zero (local.get $count)) (call $zero (local.get $bytes)) (i32.const 0))
  (func (export "environ_get") (param i32 i32) (result i32) (i32.const 0))

  (func (export "clock_time_get") (param i32 i64) (param $time i32) (result i32)
    (global.set $clock (i64.add (global.get $clock) (i64.const 1000)))
    (i64.store (local.get $time) (global.get $clock))
    (i32.const 0))

  ;; A sleep is over at once. The only event is the one that the runtime waits for: its clock.
  (func (export "poll_oneoff") (param i32) (param $events i32) (param i32) (param $count i32) (result i32)
    (global.set $clock (i64.add (global.get $clock) (i64.const 1000000)))
    (i64.store (local.get $events) (i64.const 0))
    (i64.store offset=8 (local.get $events) (i64.const 0))
    (i32.store (local.get $count) (i32.const 1))
    (i32.const 0))
  (func (export "sched_yield") (result i32) (i32.const 0))

  (func (export "random_get") (param $to i32) (param $bytes i32) (result i32)
    (block $done
      (loop $more
        (br_if $done (i32.eqz (local.get $bytes)))
        (global.set $noise (i64.xor (global.get $noise) (i64.shl (global.get $noise) (i64.const 13))))
        (global.set $noise (i64.xor (global.get $noise) (i64.shr_u (global.get $noise) (i64.const 7))))
        (global.set $noise (i64.xor (global.get $noise) (i64.shl (global.get $noise) (i64.const 17))))
        (i64.store8 (local.get $to) (global.get $noise))
        (local.set $to (i32.add (local.get $to) (i32.const 1)))
        (local.set $bytes (i32.sub (local.get $bytes) (i32.const 1)))
        (br $more)))
    (i32.const 0))

  ;; What is printed is dropped, all of it at once.
  (func (export "fd_write") (param i32) (param $pieces i32) (param $count i32) (param $written i32) (result i32)
    (local $bytes i32)
    (block $done
      (loop $more
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $bytes (i32.add (local.get $bytes) (i32.load offset=4 (local.get $pieces))))
        (local.set $pieces (i32.add (local.get $pieces) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $more)))
    (i32.store (local.get $written) (local.get $bytes))
    (i32.const 0))
  (func (export "fd_close") (param i32) (result i32) (i32.const 8))
  (func (export "fd_read") (param i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "fd_fdstat_get") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_fdstat_set_flags") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_prestat_get") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_prestat_dir_name") (param i32 i32 i32) (result i32) (i32.const 8))

  ;; The runtime gives up: a panic that nobody has caught.
  (func (export "proc_exit") (param i32) unreachable)

  (func $zero (param $at i32) (i32.store (local.get $at) (i32.const 0))))
