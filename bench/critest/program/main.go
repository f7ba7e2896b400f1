// Command program stands in for what upstream's tests have in their images: under the name nnp it
// says whose rights it has, else it serves a page at a port, as nginx and httpd do.
package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
)

func main() {
	if filepath.Base(os.Args[0]) == "nnp" {
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
		return
	}
	fmt.Println("httpd begins")
	err := os.WriteFile("/var/run/nginx.pid", fmt.Appendln(nil, os.Getpid()), 0o644)
	if err == nil {
		err = http.ListenAndServe(":"+os.Args[2], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") }))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
