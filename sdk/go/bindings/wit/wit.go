// Package wit has the words of the contract that Go has no words of its own for.
package wit

// What an Option's or a Result's Tag says.
const (
	OptionNone uint8 = 0
	OptionSome uint8 = 1

	ResultOk  uint8 = 0
	ResultErr uint8 = 1
)

// Option is a value that may be missing.
type Option[T any] struct {
	tag   uint8
	value T
}

// None is a value that is missing.
func None[T any]() Option[T] { return Option[T]{} }

// Some is a value that is there.
func Some[T any](value T) Option[T] { return Option[T]{OptionSome, value} }

// Tag is OptionNone or OptionSome.
func (o Option[T]) Tag() uint8 { return o.tag }

// IsSome says whether the value is there.
func (o Option[T]) IsSome() bool { return o.tag == OptionSome }

// IsNone says whether the value is missing.
func (o Option[T]) IsNone() bool { return o.tag == OptionNone }

// Some gives the value; it panics if that is missing.
func (o Option[T]) Some() T {
	if o.tag != OptionSome {
		panic("there is no value")
	}
	return o.value
}

// SomeOr gives the value, or another one if it is missing.
func (o Option[T]) SomeOr(other T) T {
	if o.tag != OptionSome {
		return other
	}
	return o.value
}

// Result is what a function gives that may refuse.
type Result[T, E any] struct {
	tag   uint8
	value T
	err   E
}

// Ok is what was asked for.
func Ok[T, E any](value T) Result[T, E] { return Result[T, E]{tag: ResultOk, value: value} }

// Err is a refusal.
func Err[T, E any](err E) Result[T, E] { return Result[T, E]{tag: ResultErr, err: err} }

// Tag is ResultOk or ResultErr.
func (r Result[T, E]) Tag() uint8 { return r.tag }

// IsOk says whether it is what was asked for.
func (r Result[T, E]) IsOk() bool { return r.tag == ResultOk }

// IsErr says whether it is a refusal.
func (r Result[T, E]) IsErr() bool { return r.tag == ResultErr }

// Ok gives what was asked for; it panics on a refusal.
func (r Result[T, E]) Ok() T {
	if r.tag != ResultOk {
		panic("it is a refusal")
	}
	return r.value
}

// Err gives the refusal; it panics if there is none.
func (r Result[T, E]) Err() E {
	if r.tag != ResultErr {
		panic("it is no refusal")
	}
	return r.err
}

// Tuple2 is a pair.
type Tuple2[A, B any] struct {
	F0 A
	F1 B
}

// Unit is what a function gives that has nothing to give.
type Unit struct{}
