package program

import (
	"context"
	"fmt"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// What wazero's WASI lets a program make its process hold, beside the linear
// memory that a memory limit bounds, is bounded here: the process may be the
// node's, with other pods in it. Without, fd_renumber makes a table as long as the
// number that it is given (2³¹ files are 16 GiB), a path is copied several times
// whatever its length, and a file is open as long as the program likes.
const (
	maxFiles         = 1024 // that one program has open, and their numbers
	maxPath          = 4096 // bytes, Linux's PATH_MAX
	maxSubscriptions = 4096 // of one poll_oneoff
)

// errno of WASI.
const (
	errnoSuccess     = 0
	errnoBadf        = 8
	errnoInval       = 28
	errnoMfile       = 33
	errnoNametoolong = 37
)

// files are the numbers of those that a program opened; one thread runs it.
type files map[uint32]bool

// bound of one function: what it answers without a call, or success; and what a
// call that succeeded changed.
type bound struct {
	before func(open files, s []uint64) uint64
	after  func(open files, mem api.Memory, s []uint64)
}

// paths refuses long ones; at are the places of their lengths among the arguments.
func paths(at ...int) bound {
	return bound{before: func(_ files, s []uint64) uint64 {
		for _, i := range at {
			if uint32(s[i]) > maxPath {
				return errnoNametoolong
			}
		}
		return errnoSuccess
	}}
}

var bounds = map[string]bound{
	"path_create_directory": paths(2), "path_filestat_get": paths(3), "path_filestat_set_times": paths(3), "path_link": paths(3, 6),
	"path_readlink": paths(2), "path_remove_directory": paths(2), "path_rename": paths(2, 5), "path_symlink": paths(1, 4), "path_unlink_file": paths(2),
	"path_open": {
		before: func(open files, s []uint64) uint64 {
			if len(open) >= maxFiles {
				return errnoMfile
			}
			return paths(3).before(open, s)
		},
		after: func(open files, mem api.Memory, s []uint64) {
			if fd, ok := mem.ReadUint32Le(uint32(s[8])); ok { // it was just written
				open[fd] = true
			}
		},
	},
	"fd_close": {after: func(open files, _ api.Memory, s []uint64) { delete(open, uint32(s[0])) }},
	"fd_renumber": {
		before: func(_ files, s []uint64) uint64 {
			if uint32(s[1]) >= 2*maxFiles { // with room for mounts below those that it opened
				return errnoBadf
			}
			return errnoSuccess
		},
		after: func(open files, _ api.Memory, s []uint64) {
			delete(open, uint32(s[0]))
			open[uint32(s[1])] = true
		},
	},
	"poll_oneoff": {before: func(_ files, s []uint64) uint64 {
		if uint32(s[2]) > maxSubscriptions {
			return errnoInval
		}
		return errnoSuccess
	}},
}

// offerWASI makes WASI, with its bounds, for the one program of a runtime.
func offerWASI(ctx context.Context, rt wazero.Runtime) error {
	exporter := wasi_snapshot_preview1.NewFunctionExporter()
	theirs := rt.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	exporter.ExportFunctions(theirs)
	compiled, err := theirs.Compile(ctx)
	if err != nil {
		return err
	}
	defer compiled.Close(ctx) // its functions outlive it
	ours := rt.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	exporter.ExportFunctions(ours)
	open := files{}
	for name, b := range bounds {
		definition := compiled.ExportedFunctions()[name]
		if definition == nil {
			return fmt.Errorf("wazero has no %s", name)
		}
		call, ok := definition.GoFunction().(api.GoModuleFunction)
		if !ok {
			return fmt.Errorf("wazero's %s is a %T, no function", name, definition.GoFunction())
		}
		bounded := api.GoModuleFunc(func(ctx context.Context, mod api.Module, stack []uint64) {
			arguments := append([]uint64(nil), stack...)
			if b.before != nil {
				if errno := b.before(open, arguments); errno != errnoSuccess {
					stack[0] = errno
					return
				}
			}
			call.Call(ctx, mod, stack)
			if b.after != nil && uint32(stack[0]) == errnoSuccess {
				b.after(open, mod.Memory(), arguments)
			}
		})
		ours.NewFunctionBuilder().WithGoModuleFunction(bounded, definition.ParamTypes(), definition.ResultTypes()).WithName(name).Export(name)
	}
	_, err = ours.Instantiate(ctx)
	return err
}
