package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// nftTables are where standard plugins keep their rules that use nftables: portmap one for each IP family, bridge and ptp one
// of what leaves behind the node's address. A rule's comment tells whose it is: the container's ID, or "HASH, net: NET, if: IF, id: ID".
var nftTables = [][2]string{{"ip", "cni_hostport"}, {"ip6", "cni_hostport"}, {"inet", "cni_plugins_masquerade"}}

// usesNFT tells whether plugins of a list may have made rules of nftables: they say so, or there is nothing else.
func usesNFT(list *libcni.NetworkConfigList) bool {
	if _, err := exec.LookPath("nft"); err != nil {
		return false
	}
	_, err := exec.LookPath("iptables")
	return err != nil || bytes.Contains(list.Bytes, []byte("nftables"))
}

// sweepNFT removes an attachment's rules from all of these tables at once.
func sweepNFT(ctx context.Context, id string) error {
	var drop strings.Builder
	for _, t := range nftTables {
		listed, err := run(ctx, nil, "nft", "--json", "--handle", "list", "table", t[0], t[1])
		if err != nil {
			if strings.Contains(err.Error(), "No such file or directory") {
				continue // nobody has made it
			}
			return err
		}
		text, err := dropNFT([]byte(listed), id)
		if err != nil {
			return fmt.Errorf("rules of nftables table %s %s: %w", t[0], t[1], err)
		}
		drop.WriteString(text)
	}
	if drop.Len() == 0 {
		return nil
	}
	_, err := run(ctx, []byte(drop.String()), "nft", "-f", "-")
	return err
}

// dropNFT turns a table as nft lists it in JSON into what nft must read to be rid of a container's rules.
func dropNFT(listed []byte, id string) (string, error) {
	var table struct {
		Nftables []struct {
			Rule *struct {
				Family, Table, Chain, Comment string
				Handle                        int
			}
		}
	}
	if err := json.Unmarshal(listed, &table); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, x := range table.Nftables {
		if r := x.Rule; r != nil && id != "" && (r.Comment == id || strings.HasSuffix(r.Comment, ", id: "+id)) {
			fmt.Fprintf(&b, "delete rule %s %s %s handle %d\n", r.Family, r.Table, r.Chain, r.Handle)
		}
	}
	return b.String(), nil
}
