// Package early makes this program the small process of a container before the
// rest of it is initialised. Go initialises packages in the order of their import
// paths as soon as what they import is, so that of the hundreds that the program
// has only the few before this one have run then: a shim takes a tenth of the
// memory and of the start that the whole program would. It imports nothing but the
// shim, or that would not hold; TestShimIsSmall says when it does not.
package early

import (
	"fmt"
	"os"

	"github.com/quaymaster/quaymaster/runtime/cri/oci/shim"
)

func init() {
	if len(os.Args) < 3 || os.Args[1] != "backend" {
		return
	}
	switch {
	case os.Args[2] == "oci-shim" && len(os.Args) == 4:
		if err := shim.Run(os.Args[3]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Args[2] == "oci-pause":
		shim.Pause()
	}
}
