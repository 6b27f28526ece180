//! A number that is added to, with its state in the host's store.
//!
//! A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
//! after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
//! the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
//! taken back.
//!
//! Nothing may be kept in globals: each batch of inputs runs in a fresh instance.

const std = @import("std");

const c = @import("c");
const counter = @import("counter.zig");

/// A panic traps, and tells nobody why: whoever could read it is not this machine's client.
pub const panic = std.debug.no_panic;

const Bytes = c.stored_list_u8_t;
const Context = c.exports_statehouse_machine_behavior_context_t;
const Input = c.exports_statehouse_machine_behavior_input_t;
const View = c.exports_statehouse_machine_behavior_view_t;
const Refusal = c.exports_statehouse_machine_behavior_refusal_t;

/// Arguments are freed by the machine, answers by the bindings: both with C's `free`.
const allocator = std.heap.c_allocator;

export fn exports_statehouse_machine_behavior_apply(_: *Context, input: *Input, answer: *Bytes, why: *Refusal) bool {
    defer c.exports_statehouse_machine_behavior_input_free(input);
    answer.* = if (apply(input)) |told| told else |refused| {
        const message = owned(counter.message(refused));
        why.* = .{ .code = counter.code(refused), .message = .{ .ptr = message.ptr, .len = message.len } };
        return false;
    };
    return true;
}

export fn exports_statehouse_machine_behavior_query(_: *View, request: *Bytes, answer: *Bytes, _: *Refusal) bool {
    c.stored_list_u8_free(request);
    answer.* = text(sum());
    return true;
}

fn apply(input: *Input) counter.Refused!Bytes {
    switch (input.tag) {
        c.STATEHOUSE_MACHINE_TYPES_INPUT_CREATED => {
            const start = slice(input.val.created);
            return become(if (start.len == 0) 0 else try counter.number(start));
        },
        c.STATEHOUSE_MACHINE_TYPES_INPUT_COMMAND => {
            const command = try counter.command(slice(input.val.command));
            const next = try counter.add(sum(), command.step);
            if (command.hold_ms) |ms| try hold(command.step, ms);
            return become(next);
        },
        c.STATEHOUSE_MACHINE_TYPES_INPUT_LEASE_ENDED => {
            const keys = input.val.lease_ended.keys;
            if (keys.len == 0) return nothing; // a client's own lease
            var next = sum();
            for (0..keys.len) |at| next = try counter.without(next, slice(keys.ptr[at]));
            return become(next);
        },
        else => return nothing,
    }
}

const nothing: Bytes = .{ .ptr = null, .len = 0 };

/// Grants a lease. What is to be taken back when it ends is in the name of the key attached to it.
fn hold(step: i64, ms: u64) counter.Refused!void {
    var lease: u64 = undefined;
    var failure: c.statehouse_machine_leases_failure_t = undefined;
    if (!c.statehouse_machine_leases_grant(ms, &lease, &failure)) return error.TooMany;
    var name: [48]u8 = undefined;
    // 20 digits, a space, a sign and 19 digits fit.
    var key = borrowed(std.fmt.bufPrint(&name, "{d} {d}", .{ lease, step }) catch unreachable);
    if (!c.statehouse_machine_leases_attach(lease, &key, &failure)) return error.TooMany;
}

/// The state: 8 bytes, the highest first.
fn sum() i64 {
    var name = borrowed("sum");
    var kept: Bytes = undefined;
    if (!c.statehouse_machine_store_get(&name, &kept)) return 0;
    defer c.stored_list_u8_free(&kept);
    return std.mem.readInt(i64, kept.ptr[0..8], .big);
}

/// Keeps the new sum, and tells watchers and the client.
fn become(next: i64) Bytes {
    var state: [8]u8 = undefined;
    std.mem.writeInt(i64, &state, next, .big);
    var key = borrowed("sum");
    var kept = borrowed(&state);
    c.statehouse_machine_store_set(&key, &kept);
    const told = text(next);
    var name = borrowed("sum");
    var value = told;
    c.statehouse_machine_events_emit(c.STATEHOUSE_MACHINE_EVENTS_KIND_PUT, &name, &value);
    return told;
}

fn text(value: i64) Bytes {
    var digits: [20]u8 = undefined;
    // A sign and 19 digits fit.
    const told = owned(std.fmt.bufPrint(&digits, "{d}", .{value}) catch unreachable);
    return .{ .ptr = told.ptr, .len = told.len };
}

/// A copy that the bindings free.
fn owned(bytes: []const u8) []u8 {
    return allocator.dupe(u8, bytes) catch @panic("out of memory");
}

fn slice(bytes: anytype) []const u8 {
    return if (bytes.len == 0) "" else bytes.ptr[0..bytes.len];
}

/// For calls that only read it.
fn borrowed(bytes: []const u8) Bytes {
    return .{ .ptr = @constCast(bytes.ptr), .len = bytes.len };
}
