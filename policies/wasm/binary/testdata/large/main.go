// Command large links much of Go's standard library, as a policy that reads JSON
// by struct, matches by regular expressions and writes by templates does.
package main

import (
	"encoding/json"
	"encoding/xml"
	"go/parser"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"text/template"
)

func main() {
	var v map[string]any
	_ = json.Unmarshal([]byte(os.Args[0]), &v)
	_ = xml.Unmarshal([]byte(os.Args[0]), &v)
	_, _ = parser.ParseExpr(os.Args[0])
	_, _ = new(big.Int).SetString(os.Args[0], 10)
	_, _ = netip.ParseAddr(os.Args[0])
	_, _ = url.Parse(os.Args[0])
	v["match"] = regexp.MustCompile(os.Args[0]).FindAllString(os.Args[0], -1)
	_ = template.Must(template.New("").Parse(os.Args[0])).Execute(os.Stdout, v)
}
