package counter

import (
	"math"
	"testing"
)

func TestWhatIsUnderstood(t *testing.T) {
	for text, want := range map[string]struct {
		step   int64
		holdMs uint64
	}{
		"5":                    {5, 0},
		"-5":                   {-5, 0},
		"+8":                   {8, 0},
		"-9223372036854775808": {math.MinInt64, 0},
		"5 for 1500":           {5, 1500},
	} {
		step, holdMs, refusal := Command([]byte(text))
		if refusal != nil || step != want.step || holdMs != want.holdMs {
			t.Errorf("%q: %d for %d, %v", text, step, holdMs, refusal)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	for text, code := range map[string]uint32{
		"two": 1, "": 1, "9223372036854775808": 1, "1_0": 1, " 5": 1, "5 for 0": 3, "5 for x": 3, "x for 5": 1,
	} {
		if _, _, refusal := Command([]byte(text)); refusal == nil || refusal.Code != code {
			t.Errorf("%q: %v, %d was expected", text, refusal, code)
		}
	}
	if _, refusal := Add(math.MaxInt64, 1); refusal == nil || refusal.Code != 2 {
		t.Errorf("a sum out of range: %v", refusal)
	}
}

func TestWhatIsHeldIsTakenBack(t *testing.T) {
	keys := [][]byte{HeldKey(7, 5), HeldKey(7, -2)}
	if sum, refusal := Without(10, keys); sum != 7 || refusal != nil {
		t.Errorf("%d, %v", sum, refusal)
	}
	if _, refusal := Without(0, [][]byte{HeldKey(7, math.MinInt64)}); refusal == nil || refusal.Code != 2 {
		t.Errorf("a sum out of range: %v", refusal)
	}
}
