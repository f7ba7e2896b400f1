package wasm

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tetratelabs/wazero/api"

	"github.com/quaymaster/quaymaster/policies"
)

// WASI preview 1 as guests have it: three standard streams, a clock and random
// bytes of the decision's, nothing else. wazero's own is for programs that are
// trusted with the host's time: fd_renumber makes a table as long as the number
// that it is given, path_open copies a path of any length, and nothing is charged.

// errno of WASI.
type errno uint16

const (
	errnoSuccess     errno = 0
	errnoBadf        errno = 8
	errnoFault       errno = 21
	errnoInval       errno = 28
	errnoNosys       errno = 52
	errnoNotsup      errno = 58
	errnoSpipe       errno = 70
	streams                = 3 // stdin, stdout, stderr
	characterDevice        = 2
	rightRead              = 1 << 1
	rightWrite             = 1 << 6
	maxVectors             = 1024 // of one fd_read or fd_write, and subscriptions of one poll_oneoff
	clockResolution        = 1000 // ns
	clockMonotonic         = 1
	subscriptionSize       = 48
	eventSize              = 32
	subscribedClock        = 0
	subscribedWrite        = 2
	clockIsAbsolute        = 1
	longestSleep           = time.Hour
)

// wasiFunc is one function. A nil call answers nosys; of a file, badf, or notsup
// where it is a stream.
type wasiFunc struct {
	params string // i and I for i32 and i64
	call   func(in *instance, mem api.Memory, s []uint64) errno
}

var wasiFuncs = map[string]wasiFunc{
	"args_get": {"ii", nothing}, "args_sizes_get": {"ii", noneOfNothing},
	"environ_get": {"ii", nothing}, "environ_sizes_get": {"ii", noneOfNothing},
	"clock_res_get": {"ii", func(_ *instance, mem api.Memory, s []uint64) errno {
		if uint32(s[0]) > clockMonotonic {
			return errnoInval
		}
		return written(mem.WriteUint64Le(uint32(s[1]), clockResolution))
	}},
	"clock_time_get": {"iIi", func(in *instance, mem api.Memory, s []uint64) errno {
		if uint32(s[0]) > clockMonotonic {
			return errnoInval
		}
		return written(mem.WriteUint64Le(uint32(s[2]), uint64(in.now().UnixNano())))
	}},
	"fd_close": {"i", ofStream(nothing)}, "fd_datasync": {"i", nil}, "fd_sync": {"i", nil},
	"fd_advise": {"iIIi", nil}, "fd_allocate": {"iII", nil}, "fd_renumber": {"ii", nil}, "fd_readdir": {"iiiIi", nil},
	"fd_fdstat_set_flags": {"ii", ofStream(nothing)}, "fd_fdstat_set_rights": {"iII", nil},
	"fd_filestat_set_size": {"iI", nil}, "fd_filestat_set_times": {"iIIi", nil},
	"fd_fdstat_get": {"ii", ofStream(func(_ *instance, mem api.Memory, s []uint64) errno {
		var stat [24]byte
		stat[0], stat[8] = characterDevice, rightRead
		if uint32(s[0]) != 0 {
			stat[8] = rightWrite
		}
		return written(mem.Write(uint32(s[1]), stat[:]))
	})},
	"fd_filestat_get": {"ii", ofStream(func(_ *instance, mem api.Memory, s []uint64) errno {
		var stat [64]byte
		stat[16], stat[24] = characterDevice, 1
		return written(mem.Write(uint32(s[1]), stat[:]))
	})},
	"fd_prestat_get": {"ii", bad}, "fd_prestat_dir_name": {"iii", bad}, // no folder is open
	"fd_pread": {"iiiIi", ofStream(noSeek)}, "fd_pwrite": {"iiiIi", ofStream(noSeek)},
	"fd_seek": {"iIii", ofStream(noSeek)}, "fd_tell": {"ii", ofStream(noSeek)},
	"fd_read": {"iiii", func(_ *instance, mem api.Memory, s []uint64) errno {
		if uint32(s[0]) != 0 {
			return errnoBadf
		}
		return written(mem.WriteUint32Le(uint32(s[3]), 0)) // the end of input
	}},
	"fd_write":              {"iiii", fdWrite},
	"path_create_directory": {"iii", bad}, "path_filestat_get": {"iiiii", bad}, "path_filestat_set_times": {"iiiiIIi", bad},
	"path_link": {"iiiiiii", bad}, "path_open": {"iiiiiIIii", bad}, "path_readlink": {"iiiiii", bad}, "path_remove_directory": {"iii", bad},
	"path_rename": {"iiiiii", bad}, "path_symlink": {"iiiii", bad}, "path_unlink_file": {"iii", bad},
	"poll_oneoff": {"iiii", pollOneoff},
	"proc_exit": {"i", func(_ *instance, _ api.Memory, s []uint64) errno {
		panic(fmt.Errorf("%w: the guest exits with code %d", policies.ErrTrap, uint32(s[0])))
	}},
	"proc_raise": {"i", nil},
	"random_get": {"ii", func(in *instance, mem api.Memory, s []uint64) errno {
		buffer, ok := mem.Read(uint32(s[0]), uint32(s[1]))
		if ok {
			in.fillRandom(buffer)
		}
		return written(ok)
	}},
	"sched_yield": {"", nothing},
}

// signature of a function as modules import it.
func (f wasiFunc) signature(name string) signature {
	out := signature{Params: strings.NewReplacer("i", i32, "I", i64).Replace(f.params), Results: i32}
	if name == "proc_exit" {
		out.Results = ""
	}
	return out
}

func (f wasiFunc) answer(in *instance, name string, mem api.Memory, s []uint64) errno {
	switch {
	case f.call != nil:
		return f.call(in, mem, s)
	case !strings.HasPrefix(name, "fd_"):
		return errnoNosys
	case uint32(s[0]) >= streams:
		return errnoBadf
	}
	return errnoNotsup
}

func written(ok bool) errno {
	if !ok {
		return errnoFault
	}
	return errnoSuccess
}

func nothing(*instance, api.Memory, []uint64) errno { return errnoSuccess }
func bad(*instance, api.Memory, []uint64) errno     { return errnoBadf }
func noSeek(*instance, api.Memory, []uint64) errno  { return errnoSpipe }

// noneOfNothing writes a count and a length of 0.
func noneOfNothing(_ *instance, mem api.Memory, s []uint64) errno {
	return written(mem.WriteUint32Le(uint32(s[0]), 0) && mem.WriteUint32Le(uint32(s[1]), 0))
}

func ofStream(f func(*instance, api.Memory, []uint64) errno) func(*instance, api.Memory, []uint64) errno {
	return func(in *instance, mem api.Memory, s []uint64) errno {
		if uint32(s[0]) >= streams {
			return errnoBadf
		}
		return f(in, mem, s)
	}
}

// fdWrite takes what a guest prints: a line of the log for each call.
func fdWrite(in *instance, mem api.Memory, s []uint64) errno {
	fd, vectors, n := uint32(s[0]), uint32(s[1]), uint32(s[2])
	if fd != 1 && fd != 2 {
		return errnoBadf
	}
	if n > maxVectors {
		return errnoInval
	}
	in.meter.chargeBytes(8 * int(n))
	table, ok := mem.Read(vectors, 8*n)
	if !ok {
		return errnoFault
	}
	var line []byte
	var all uint32
	for v := range slices.Chunk(table, 8) {
		part, ok := mem.Read(le.Uint32(v), le.Uint32(v[4:]))
		if !ok {
			return errnoFault
		}
		all += uint32(len(part))
		if in.logs < maxLogs {
			line = append(line, part[:min(len(part), maxText-len(line))]...)
		}
	}
	if len(line) > 0 {
		in.log(0, strings.ToValidUTF8(strings.TrimRight(string(line), "\n"), "?"))
	}
	return written(mem.WriteUint32Le(uint32(s[3]), all))
}

// pollOneoff answers at once: streams are ready, and a sleep is over, which moves
// the clock to its end.
func pollOneoff(in *instance, mem api.Memory, s []uint64) errno {
	n := uint32(s[2])
	if n == 0 || n > maxVectors {
		return errnoInval
	}
	in.meter.chargeBytes(int(n) * (subscriptionSize + eventSize))
	asked, ok := mem.Read(uint32(s[0]), n*subscriptionSize)
	events, ok2 := mem.Read(uint32(s[1]), n*eventSize)
	if !ok || !ok2 {
		return errnoFault
	}
	sleep := longestSleep
	for i := range int(n) {
		sub, event := [subscriptionSize]byte(asked[i*subscriptionSize:]), events[i*eventSize:][:eventSize] // the two may overlap
		clear(event)
		copy(event, sub[:8])
		kind := sub[8]
		event[10] = kind
		switch {
		case kind > subscribedWrite:
			return errnoInval
		case kind == subscribedClock:
			d := le.Uint64(sub[24:32])
			if sub[40]&clockIsAbsolute != 0 {
				d -= min(d, uint64(in.now().UnixNano()))
			}
			sleep = min(sleep, time.Duration(min(d, math.MaxInt64)))
		default:
			sleep = 0
			if le.Uint32(sub[16:20]) >= streams {
				event[8] = byte(errnoBadf)
			}
		}
	}
	in.ticks += int64(sleep / time.Microsecond)
	return written(mem.WriteUint32Le(uint32(s[3]), n))
}
