package wasm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	wasmbinary "github.com/quaymaster/quaymaster/policies/wasm/binary"
)

var le = binary.LittleEndian

// instance is one instance of a program; one caller uses it at a time.
type instance struct {
	program *program
	module  api.Module
	ctx     context.Context // leads imports to the instance
	meter   meter
	stack   [4]uint64 // arguments and results
	testing bool      // a self-test: the clock of a busy machine does not decide on it

	alloc, filter, score, normalize, admit api.Function
	prefilter, filterRow, scoreRow         api.Function // of the row tier

	cycle      policies.Cycle
	ticks      int64  // of the clock that WASI shows
	random     uint64 // state of what WASI shows
	symbols    *abi.Symbols
	newSymbols int
	errorText  string
	reasons    map[int]string
	logs       int
	spent      int64 // fuel since begin
	reads      int   // of the store since begin
	read       read  // the last one

	snapshot            *abi.Snapshot
	snapshotAt          uint32
	pod                 block
	verdicts, scores    block
	input               block // of admit
	record              []byte
	recordOf            any // the *corev1.Pod whose record is at pod
	recordSymbols       *abi.Symbols
	recordSymbolsLength int

	podRow, nodeRow block       // protobuf
	podSize         uint32      // of what is in podRow
	prefiltered     *corev1.Pod // that prefilter was called for, and is in podRow
	heap            *opaHeap    // of a module of OPA's
	accounted       int64       // bytes of memory, in program.memory
	linear          any         // what backs the module's memory
	row             int         // under way in the row tier, -1 outside
}

// block is guest memory that the host owns.
type block struct{ at, size uint32 }

// instantiate makes an instance and runs its start function and _initialize.
func (p *program) instantiate(ctx context.Context) (*instance, error) {
	in := &instance{program: p, reasons: map[int]string{}, row: -1}
	in.ctx = context.WithValue(context.Background(), instanceKey{}, in)
	in.cycle.Time = time.Unix(0, 0)
	in.meter.begin(ctx, loadFuel, loadDeadline)
	config := wazero.NewModuleConfig().WithName("").WithStartFunctions()
	var err error
	memory := experimental.WithMemoryAllocator(in.ctx, experimental.MemoryAllocatorFunc(in.allocate))
	if in.module, err = p.runtime.InstantiateModule(memory, p.compiled, config); err != nil {
		return nil, in.failure("instantiate", err)
	}
	in.meter.global, _ = in.module.ExportedGlobal(wasmbinary.FuelGlobal).(api.MutableGlobal)
	if in.meter.global == nil {
		in.close()
		return nil, errors.New("the fuel counter is missing")
	}
	for name, f := range map[string]*api.Function{
		"qm_alloc": &in.alloc, "filter_batch": &in.filter, "score_batch": &in.score, "normalize": &in.normalize, "admit": &in.admit,
		"prefilter": &in.prefilter, "filter": &in.filterRow, "score": &in.scoreRow,
	} {
		*f = in.module.ExportedFunction(name)
	}
	if f := in.module.ExportedFunction("_initialize"); f != nil {
		if err := in.callWith(ctx, "_initialize", f, loadFuel, loadDeadline); err != nil {
			in.close()
			return nil, err
		}
	}
	return in, nil
}

// now is the cycle's time and moves by a microsecond a look, so that a guest's
// runtime sees time pass, the same in every run.
func (in *instance) now() time.Time {
	in.ticks++
	return in.cycle.Time.Add(time.Duration(in.ticks) * time.Microsecond)
}

// fillRandom gives the random bytes that the cycle's seed makes (SplitMix64).
func (in *instance) fillRandom(b []byte) {
	for i := range b {
		if i%slice == 0 {
			in.meter.charge(int64(min(len(b)-i, slice)))
		}
		in.random += 0x9e3779b97f4a7c15
		z := in.random
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		b[i] = byte(z ^ z>>31)
	}
}

func (in *instance) log(level int32, text string) {
	if in.logs++; in.logs > maxLogs {
		return
	}
	in.program.logs.write(in.meter.ctx, slog.Level(max(min(level, 2), -1)*4), text)
}

func (in *instance) symbol(s string) uint32 {
	if in.symbols == nil || s == "" {
		return 0
	}
	if id := in.symbols.Lookup(s); id != 0 {
		return id
	}
	if in.newSymbols++; in.newSymbols > maxNewSymbols {
		panic(fmt.Errorf("%w: more than %d new symbols", policies.ErrTrap, maxNewSymbols))
	}
	return in.symbols.ID(s)
}

// begin sets what one decision may see.
func (in *instance) begin(c policies.Cycle) {
	in.cycle, in.ticks, in.random, in.logs, in.spent, in.reads = c, 0, c.Seed, 0, 0, 0
	in.read = read{}
}

// call runs f with the program's limits; arguments and results are in stack.
func (in *instance) call(ctx context.Context, name string, f api.Function) error {
	l := &in.program.limits
	if in.testing {
		return in.callWith(ctx, name, f, l.fuel, max(selfTestDeadline, l.deadline))
	}
	return in.callWith(ctx, name, f, l.fuel, l.deadline)
}

func (in *instance) callWith(ctx context.Context, name string, f api.Function, fuel int64, deadline time.Duration) error {
	in.errorText = ""
	in.meter.begin(ctx, fuel, deadline)
	err := f.CallWithStack(in.ctx, in.stack[:])
	in.spent += in.meter.used()
	if err != nil {
		return in.failure(name, err)
	}
	return nil
}

// failure tells a trap from what the meter or an import reported.
func (in *instance) failure(name string, err error) error {
	for _, known := range []error{policies.ErrFuel, policies.ErrDeadline, policies.ErrRead, policies.ErrTrap} {
		if errors.Is(err, known) {
			return fmt.Errorf("%s: %w", name, firstLine(err))
		}
	}
	if cause := in.meter.ctx.Err(); cause != nil && errors.Is(err, cause) {
		return fmt.Errorf("%s: %w", name, cause)
	}
	text := firstLine(err).Error()
	if in.errorText != "" {
		text += ": " + in.errorText
	}
	return fmt.Errorf("%s: %w: %s", name, policies.ErrTrap, strings.TrimPrefix(text, "wasm error: "))
}

// lineError has the first line of an error, without the guest's stack.
type lineError struct {
	text  string
	cause error
}

func (e lineError) Error() string { return e.text }
func (e lineError) Unwrap() error { return e.cause }

func firstLine(err error) error {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return lineError{strings.TrimSuffix(text, " (recovered by wazero)"), err}
}

// status turns the non-zero result of an entry point into an error.
func (in *instance) status(name string) error {
	code := int32(in.stack[0])
	if code == 0 {
		return nil
	}
	if in.errorText != "" {
		return fmt.Errorf("%s: %w: code %d: %s", name, policies.ErrResult, code, in.errorText)
	}
	return fmt.Errorf("%s: %w: code %d", name, policies.ErrResult, code)
}

// reserve makes b hold size bytes, by a call of qm_alloc when it must grow.
func (in *instance) reserve(ctx context.Context, b *block, size uint32) error {
	if b.size >= size && b.at != 0 {
		return nil
	}
	size = max(size+size/4, 64)
	in.stack[0] = uint64(size)
	if err := in.call(ctx, "qm_alloc", in.alloc); err != nil {
		return err
	}
	at := uint32(in.stack[0])
	if at == 0 {
		return fmt.Errorf("qm_alloc: %w: no memory for %d bytes", policies.ErrResult, size)
	}
	if at%8 != 0 || uint64(at)+uint64(size) > uint64(in.module.Memory().Size()) {
		return fmt.Errorf("qm_alloc: %w: %#x is not the address of %d bytes of memory", policies.ErrResult, at, size)
	}
	*b = block{at, size}
	return nil
}

// bytes of a block; the view ends with the next call of the guest.
func (in *instance) bytes(b block, size uint32) ([]byte, error) {
	view, ok := in.module.Memory().Read(b.at, size)
	if !ok { // memory never shrinks
		return nil, fmt.Errorf("%w: block at %#x", policies.ErrResult, b.at)
	}
	return view, nil
}

func (in *instance) configure(ctx context.Context, config []byte) error {
	f := in.module.ExportedFunction("qm_configure")
	if f == nil {
		return nil
	}
	if len(config) == 0 {
		config = []byte("{}")
	}
	var b block
	if err := in.reserve(ctx, &b, uint32(len(config))); err != nil {
		return err
	}
	view, err := in.bytes(b, uint32(len(config)))
	if err != nil {
		return err
	}
	copy(view, config)
	in.stack[0], in.stack[1] = uint64(b.at), uint64(len(config))
	if err := in.callWith(ctx, "qm_configure", f, loadFuel, loadDeadline); err != nil {
		return err
	}
	if code := int32(in.stack[0]); code != 0 {
		if in.errorText != "" {
			return fmt.Errorf("the module refuses its config: %s", in.errorText)
		}
		return fmt.Errorf("the module refuses its config with code %d", code)
	}
	return nil
}

// account brings the program's memory up to date; the instance is idle.
func (in *instance) account(size int64) {
	if size != in.accounted {
		in.program.memory.Add(size - in.accounted)
		in.accounted = size
	}
}

func (in *instance) close() {
	in.account(0)
	if in.module != nil {
		_ = in.module.Close(context.Background()) // nothing is left to flush
	}
}

// answer reads the bytes that a packed ptr<<32|len names.
func (in *instance) answer(packed uint64) ([]byte, error) {
	ptr, size := uint32(packed>>32), uint32(packed)
	if size > maxResult {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", policies.ErrResult, size, maxResult)
	}
	view, ok := in.module.Memory().Read(ptr, size)
	if !ok {
		return nil, fmt.Errorf("%w: %d bytes at %#x are outside of memory", policies.ErrResult, size, ptr)
	}
	return slices.Clone(view), nil
}
