package core_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// asKubectl reads a path as kubectl get does, which prefers a table.
func asKubectl(t *testing.T, config *rest.Config, path string) (int, string, metav1.Table) {
	t.Helper()
	code, body := getAccepting(t, config, path, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json")
	var table metav1.Table
	if err := json.Unmarshal(body, &table); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return code, string(body), table
}

// rows are the cells of a table but for the last one, an age.
func rows(table metav1.Table) (out []string) {
	for _, row := range table.Rows {
		out = append(out, fmt.Sprint(row.Cells[:len(row.Cells)-1]))
	}
	return out
}

func TestPastAsKubectlReadsIt(t *testing.T) {
	embedded(t)
	ctx := t.Context()
	e := coretest.Start(t, core.Options{Listen: "127.0.0.1:0"})
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "past"}}
	if _, err := e.Client().CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	maps := e.Client().CoreV1().ConfigMaps("past")
	var last int64
	for _, name := range []string{"a", "b", "c"} {
		object := setting(name, "one")
		object.Labels = map[string]string{"group": name}
		made, err := maps.Create(ctx, object, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		last = revisionOf(t, made)
	}
	changed, err := maps.Update(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Data: map[string]string{"x": "1", "y": "2"}}, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	past, err := e.At(core.Revision(last))
	if err != nil {
		t.Fatal(err)
	}
	https := overHTTPS(t, e)
	where := "/api/v1/namespaces/past/configmaps"
	labelled := url.Values{"labelSelector": {"group in (a,b,c)"}}

	// Tables through At, and over HTTPS with the revision in the request.
	for _, test := range []struct {
		path string
		want []string
	}{
		{where + "?" + labelled.Encode(), []string{"[a 1]", "[b 1]", "[c 1]"}},
		{where + "?labelSelector=group%3Db", []string{"[b 1]"}},
		{where + "?fieldSelector=metadata.name%3Da", []string{"[a 1]"}},
		{"/api/v1/configmaps?labelSelector=group", []string{"[a 1]", "[b 1]", "[c 1]"}},
	} {
		for name, read := range map[string]func() (int, string, metav1.Table){
			"at": func() (int, string, metav1.Table) { return asKubectl(t, past.RESTConfig(), test.path) },
			"exact": func() (int, string, metav1.Table) {
				return asKubectl(t, https, fmt.Sprintf("%s&resourceVersion=%d&resourceVersionMatch=Exact", test.path, last))
			},
		} {
			code, body, table := read()
			if code != http.StatusOK || table.Kind != "Table" || !slices.Equal(rows(table), test.want) || table.ResourceVersion != fmt.Sprint(last) || table.ColumnDefinitions[0].Name != "Name" {
				t.Errorf("%s %s: %d %s, not %v", name, test.path, code, body, test.want)
			}
		}
	}
	if code, body, table := asKubectl(t, past.RESTConfig(), where+"/a"); code != http.StatusOK || !slices.Equal(rows(table), []string{"[a 1]"}) {
		t.Errorf("one: %d %s", code, body)
	}
	if code, body, _ := asKubectl(t, past.RESTConfig(), where+"/never"); code != http.StatusNotFound || !strings.Contains(body, `configmaps \"never\" not found`) {
		t.Errorf("none: %d %s", code, body)
	}
	if code, body, _ := asKubectl(t, past.RESTConfig(), where+"/a?watch=x"); code != http.StatusOK {
		t.Errorf("one with an odd query: %d %s", code, body)
	}

	// Pages stay at the revision whatever happens meanwhile.
	query := labelled
	query.Set("limit", "1")
	query.Set("resourceVersion", fmt.Sprint(last))
	query.Set("resourceVersionMatch", "Exact")
	var seen []string
	for page := range 5 { // the last one may be empty
		code, body := get(t, https, where+"?"+query.Encode())
		var list corev1.ConfigMapList
		if err := json.Unmarshal(body, &list); err != nil || code != http.StatusOK || page > 3 || list.ResourceVersion != fmt.Sprint(last) {
			t.Fatalf("page %d: %d %s", page, code, body)
		}
		for _, item := range list.Items {
			seen = append(seen, item.Name)
		}
		if list.Continue == "" {
			break
		}
		query = url.Values{"limit": {"1"}, "continue": {list.Continue}, "labelSelector": {"group in (a,b,c)"}}
		if _, err := maps.Create(ctx, setting(fmt.Sprint("later-", page), ""), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if fmt.Sprint(seen) != "[a b c]" {
		t.Errorf("the pages had %v", seen)
	}

	// By time: to the second, so that the moment may be before the last changes.
	then, err := e.At(core.Time(time.Now().Add(time.Hour)))
	if err == nil {
		t.Errorf("a time to come has revision %d", then.Revision)
	}
	moment := time.Now().Add(2 * time.Second)
	coretest.Eventually(t, "the second to pass", func(context.Context) (bool, error) { return time.Now().After(moment), nil })
	if then, err = e.At(core.Time(moment)); err != nil || then.Revision < revisionOf(t, changed) {
		t.Errorf("%+v, %v", then, err)
	}
	if code, body, table := asKubectl(t, then.RESTConfig(), where+"/b"); code != http.StatusOK || !slices.Equal(rows(table), []string{"[b 2]"}) {
		t.Errorf("by time: %d %s", code, body)
	}

	for _, test := range []struct {
		query string
		code  int
		text  string
	}{
		{"resourceVersionMatch=Exact", http.StatusUnprocessableEntity, "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		{"resourceVersion=0&resourceVersionMatch=Exact", http.StatusUnprocessableEntity, `resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"`},
		{"resourceVersion=99999999&resourceVersionMatch=Exact", http.StatusGatewayTimeout, "Too large resource version: 99999999"},
		{"resourceVersion=monday&resourceVersionMatch=Exact", http.StatusBadRequest, "Invalid value"},
	} {
		if code, body := get(t, https, where+"?"+test.query); code != test.code || !strings.Contains(string(body), test.text) {
			t.Errorf("%s: %d %s\nnot %d with %q", test.query, code, body, test.code, test.text)
		}
	}
}
