// Package early makes this program the small process of a container before the
// rest of it is initialised. Go initialises packages in the order of their import
// paths as soon as what they import is, so that of the thousand that the program
// has only a third have run then: a shim takes a third of the memory and a quarter
// of the start that the whole program would. It imports nothing but the
// shims, or that would not hold; TestImportsAreFew says when it does not.
package early

import (
	"fmt"
	"os"

	"github.com/quaymaster/quaymaster/runtime/cri/oci/shim"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm/program"
)

func init() {
	if len(os.Args) < 3 || os.Args[1] != "backend" {
		return
	}
	switch {
	case os.Args[2] == "oci-shim" && len(os.Args) == 4:
		if err := shim.Run(os.Args[3]); err != nil {
			fmt.Println(err) // to the backend, which waits for it
			os.Exit(1)
		}
		os.Exit(0)
	case os.Args[2] == "oci-pause":
		shim.Pause()
	case os.Args[2] == "wasm-shim" && len(os.Args) == 4:
		if err := program.Shim(os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err) // which the backend has written to a file
			os.Exit(1)
		}
		os.Exit(0)
	}
}
