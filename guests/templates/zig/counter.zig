//! What a counter understands and computes, apart from where its state is.

const std = @import("std");

const hold_ms_max = 86_400_000;

/// Why an input changes nothing. Codes are yours, but never 0.
pub const Refused = error{ Number, Range, Time, TooMany };

pub fn code(refused: Refused) u32 {
    return switch (refused) {
        error.Number => 1,
        error.Range => 2,
        error.Time => 3,
        error.TooMany => 4,
    };
}

pub fn message(refused: Refused) []const u8 {
    return switch (refused) {
        error.Number => "a whole number between -2^63 and 2^63-1 is expected, like 5 or -5",
        error.Range => "the sum would leave the range of -2^63 to 2^63-1",
        error.Time => "the time is a whole number of milliseconds from 1 to 86400000",
        error.TooMany => "there are as many numbers held as the machine may hold",
    };
}

/// A command, understood: what to add, and for how long if not for good.
pub const Command = struct { step: i64, hold_ms: ?u64 };

/// Reads `5`, or `5 for 1500`.
pub fn command(text: []const u8) Refused!Command {
    const word = " for ";
    const at = std.mem.find(u8, text, word) orelse return .{ .step = try number(text), .hold_ms = null };
    const step = try number(text[0..at]);
    const ms = digits(text[at + word.len ..]) orelse return error.Time;
    if (ms < 1 or ms > hold_ms_max) return error.Time;
    return .{ .step = step, .hold_ms = ms };
}

/// Reads a whole number: a sign or none, and 1 to 19 digits.
pub fn number(text: []const u8) Refused!i64 {
    const negative = text.len > 0 and text[0] == '-';
    const signed = negative or (text.len > 0 and text[0] == '+');
    const size: i128 = digits(text[@intFromBool(signed)..]) orelse return error.Number;
    return std.math.cast(i64, if (negative) -size else size) orelse error.Number;
}

fn digits(text: []const u8) ?u64 {
    if (text.len < 1 or text.len > 19) return null;
    var value: u64 = 0;
    for (text) |c| {
        if (c < '0' or c > '9') return null;
        value = value * 10 + (c - '0');
    }
    return value;
}

/// The sum with `step` added.
pub fn add(sum: i64, step: i64) Refused!i64 {
    return std.math.add(i64, sum, step) catch error.Range;
}

/// The sum without what the key of a lease that ended says was held.
pub fn without(sum: i64, key: []const u8) Refused!i64 {
    const space = std.mem.findScalar(u8, key, ' ') orelse return error.Number;
    return std.math.sub(i64, sum, try number(key[space + 1 ..])) catch error.Range;
}

test "what is understood" {
    try std.testing.expectEqual(Command{ .step = 5, .hold_ms = null }, try command("5"));
    try std.testing.expectEqual(Command{ .step = -5, .hold_ms = 1500 }, try command("-5 for 1500"));
    try std.testing.expectEqual(std.math.minInt(i64), try number("-9223372036854775808"));
}

test "what is refused" {
    for ([_][]const u8{ "two", "", "9223372036854775808", "1_0", " 5", "x for 5" }) |text| {
        try std.testing.expectError(error.Number, command(text));
    }
    try std.testing.expectError(error.Time, command("5 for 0"));
    try std.testing.expectError(error.Range, add(std.math.maxInt(i64), 1));
}

test "what is held is taken back" {
    try std.testing.expectEqual(@as(i64, 5), try without(10, "7 5"));
    try std.testing.expectError(error.Range, without(0, "7 -9223372036854775808"));
}
