// Package types holds what the generated bindings make of the contract's options and results.
package types

// What an Option or a Result is, as its Tag tells.
const (
	OptionNone = 0
	OptionSome = 1
	ResultOk   = 0
	ResultErr  = 1
)

// Unit is nothing, where a type is needed.
type Unit struct{}

// Option is a value or none.
type Option[T any] struct {
	value *T
}

// None is an option without a value.
func None[T any]() Option[T] { return Option[T]{} }

// Some is an option with a value.
func Some[T any](value T) Option[T] { return Option[T]{&value} }

// IsNone tells whether there is no value.
func (o Option[T]) IsNone() bool { return o.value == nil }

// IsSome tells whether there is a value.
func (o Option[T]) IsSome() bool { return o.value != nil }

// Some is the value; it panics if there is none.
func (o Option[T]) Some() T { return *o.value }

// SomeOr is the value, or another one if there is none.
func (o Option[T]) SomeOr(other T) T {
	if o.value == nil {
		return other
	}
	return *o.value
}

// Tag is OptionNone or OptionSome.
func (o Option[T]) Tag() uint8 {
	if o.value == nil {
		return OptionNone
	}
	return OptionSome
}

// Result is a value or an error.
type Result[T, E any] struct {
	failed bool
	value  T
	err    E
}

// Ok is a result with a value.
func Ok[T, E any](value T) Result[T, E] { return Result[T, E]{value: value} }

// Err is a result with an error.
func Err[T, E any](err E) Result[T, E] { return Result[T, E]{failed: true, err: err} }

// IsOk tells whether there is a value.
func (r Result[T, E]) IsOk() bool { return !r.failed }

// IsErr tells whether there is an error.
func (r Result[T, E]) IsErr() bool { return r.failed }

// Ok is the value; it panics if there is an error.
func (r Result[T, E]) Ok() T {
	if r.failed {
		panic("there is no value, but an error")
	}
	return r.value
}

// Err is the error; it panics if there is a value.
func (r Result[T, E]) Err() E {
	if !r.failed {
		panic("there is no error, but a value")
	}
	return r.err
}

// Tag is ResultOk or ResultErr.
func (r Result[T, E]) Tag() uint8 {
	if r.failed {
		return ResultErr
	}
	return ResultOk
}
