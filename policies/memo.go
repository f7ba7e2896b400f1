package policies

import "context"

// Memo keeps what an engine makes of an admission request for the policies that are
// asked about the same one after it. It is not safe for concurrent use.
type Memo struct{ made map[any]any }

type memoKey struct{}

// MemoOf the request that ctx is of; nil when nobody else is asked about it.
func MemoOf(ctx context.Context) *Memo {
	m, _ := ctx.Value(memoKey{}).(*Memo)
	return m
}

// Once returns what f made for key, which is of a type of the caller's. An error is
// not kept, and what is returned must not be changed.
func Once[T any](m *Memo, key any, f func() (T, error)) (T, error) {
	if m == nil {
		return f()
	}
	if made, ok := m.made[key]; ok {
		return made.(T), nil
	}
	made, err := f()
	if err == nil {
		if m.made == nil {
			m.made = map[any]any{}
		}
		m.made[key] = made
	}
	return made, err
}
