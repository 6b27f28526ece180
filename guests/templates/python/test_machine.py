"""The counter's tests, with `host.py` in place of the host: python -m unittest"""

import unittest

import host
import machine


def apply(input: object) -> bytes:
    return machine.Behavior().apply(host.Context(), input)


def command(text: bytes) -> bytes:
    return apply(host.Input_Command(text))


def query() -> bytes:
    return machine.Behavior().query(host.View(), b"")


class Counter(unittest.TestCase):
    def setUp(self) -> None:
        host.reset()
        apply(host.Input_Created(b""))

    def test_what_is_added_is_answered_and_seen_by_watchers(self) -> None:
        apply(host.Input_Created(b"40"))
        self.assertEqual((command(b"2"), query()), (b"42", b"42"))
        self.assertEqual(host.events[-1], (host.Kind.PUT, b"sum", b"42"))

    def test_what_is_not_understood_is_refused_and_changes_nothing(self) -> None:
        command(b"9223372036854775807")
        seen = len(host.events)
        refused = {b"two": 1, b"": 1, b"9223372036854775808": 1, b"1_0": 1, b"1": 2, b"-1 for 0": 3}
        for text, code in refused.items():
            with self.assertRaises(host.Err) as raised:
                command(text)
            self.assertEqual(raised.exception.value.code, code, text)
        self.assertEqual((query(), len(host.events)), (b"9223372036854775807", seen))

    def test_what_is_held_is_taken_back_when_its_time_is_over(self) -> None:
        self.assertEqual(command(b"5 for 1500"), b"5")
        [(lease, keys)] = host.attached.items()
        self.assertEqual(apply(host.Input_LeaseEnded(host.LeaseEnd(lease, keys))), b"0")
        seen = len(host.events)
        self.assertEqual(apply(host.Input_LeaseEnded(host.LeaseEnd(9, []))), b"")
        self.assertEqual(len(host.events), seen)


if __name__ == "__main__":
    unittest.main()
