package core_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/core/storage"
)

func revisionOf(t *testing.T, object metav1.Object) int64 {
	t.Helper()
	revision, err := strconv.ParseInt(object.GetResourceVersion(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func setting(name, text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"text": text}}
}

func TestAt(t *testing.T) {
	embedded(t)
	ctx := t.Context()
	e := coretest.Start(t, core.Options{Listen: "127.0.0.1:0"})
	maps := e.Client().CoreV1().ConfigMaps("default")
	coretest.Eventually(t, "the root certificate, a second object in each list", func(ctx context.Context) (bool, error) {
		_, err := maps.Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	one, err := maps.Create(ctx, setting("a", "one"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	first := revisionOf(t, one)
	one.Data["text"] = "two"
	two, err := maps.Update(ctx, one, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Create(ctx, setting("b", "one"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		revision int64
		text     string
		names    []string
	}{
		{first, "one", []string{"a", "kube-root-ca.crt"}},
		{revisionOf(t, two), "two", []string{"a", "kube-root-ca.crt"}},
		{revisionOf(t, two) + 1, "two", []string{"a", "b", "kube-root-ca.crt"}},
	} {
		past, err := e.At(core.Revision(test.revision))
		if err != nil {
			t.Fatal(err)
		}
		then := past.Client().CoreV1().ConfigMaps("default")
		got, err := then.Get(ctx, "a", metav1.GetOptions{})
		if err != nil || got.Data["text"] != test.text || got.UID != one.UID {
			t.Errorf("at %d: %v, %v, not %s", test.revision, got, err, test.text)
		}
		list, err := then.List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, item := range list.Items {
			names = append(names, item.Name)
		}
		if list.ResourceVersion != fmt.Sprint(test.revision) || slices.Contains(test.names, "b") != slices.Contains(names, "b") || !slices.Contains(names, "a") {
			t.Errorf("at %d: %v at %s, not %v", test.revision, names, list.ResourceVersion, test.names)
		}
		if page, err := then.List(ctx, metav1.ListOptions{Limit: 1}); err != nil || len(page.Items) != 1 || page.Continue == "" {
			t.Errorf("a page: %v, %v", page, err)
		} else if rest, err := then.List(ctx, metav1.ListOptions{Continue: page.Continue}); err != nil || len(rest.Items) != len(names)-1 {
			t.Errorf("the rest: %v, %v", rest, err)
		}
		bare, err := metadata.NewForConfig(past.RESTConfig())
		if err != nil {
			t.Fatal(err)
		}
		if m, err := bare.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace("default").Get(ctx, "a", metav1.GetOptions{}); err != nil || m.UID != one.UID {
			t.Errorf("metadata at %d: %v, %v", test.revision, m, err)
		}
	}

	past, err := e.At(core.Revision(first))
	if err != nil {
		t.Fatal(err)
	}
	then := past.Client().CoreV1()
	if _, err := then.ConfigMaps("default").Get(ctx, "b", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what came later: %v", err)
	}
	for what, err := range map[string]error{
		"create": func() error {
			_, err := then.ConfigMaps("default").Create(ctx, setting("c", ""), metav1.CreateOptions{})
			return err
		}(),
		"delete": then.ConfigMaps("default").Delete(ctx, "a", metav1.DeleteOptions{}),
		"logs":   then.Pods("default").GetLogs("a", &corev1.PodLogOptions{}).Do(ctx).Error(),
	} {
		if !apierrors.IsMethodNotSupported(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if now, err := maps.Get(ctx, "b", metav1.GetOptions{}); err != nil || now.Name != "b" {
		t.Errorf("the present: %v, %v", now, err)
	}

	// An informer over the past fills once and hears nothing more.
	factory := informers.NewSharedInformerFactory(past.Client(), 0)
	lister := factory.Core().V1().ConfigMaps().Lister()
	running, end := context.WithCancel(ctx)
	factory.Start(running.Done())
	for kind, synced := range factory.WaitForCacheSync(running.Done()) {
		if !synced {
			t.Errorf("%v never filled", kind)
		}
	}
	if m, err := lister.ConfigMaps("default").Get("a"); err != nil || m.Data["text"] != "one" {
		t.Errorf("the lister: %v, %v", m, err)
	}
	end()
	factory.Shutdown()

	if _, err := e.At(core.Revision(1 << 40)); !errors.Is(err, storage.ErrFuture) {
		t.Errorf("the future: %v", err)
	}
	if _, err := e.At(core.Time(time.Now().Add(-time.Hour))); !errors.Is(err, storage.ErrCompacted) || !strings.Contains(err.Error(), "can be read") {
		t.Errorf("before the beginning: %v", err)
	}
	if past, err := e.At(core.Time(time.Now())); err != nil || past.Revision < revisionOf(t, two) {
		t.Errorf("now: %v, %v", past, err)
	}
}

// What is forgotten fails as expired and says what is still there.
func TestForgottenPast(t *testing.T) {
	embedded(t)
	ctx := t.Context()
	e := coretest.Start(t, core.Options{History: 500 * time.Millisecond, Listen: "127.0.0.1:0"})
	maps := e.Client().CoreV1().ConfigMaps("default")
	if _, err := maps.Create(ctx, setting("a", "one"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var past *core.Past
	coretest.Eventually(t, "a past that is not forgotten at once, on a busy machine", func(ctx context.Context) (ok bool, err error) {
		past, err = e.At(core.Revision(e.Revision()))
		return err == nil, nil
	})
	if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the past to be forgotten", func(ctx context.Context) (bool, error) {
		_, err := e.At(core.Revision(past.Revision))
		return errors.Is(err, storage.ErrCompacted), nil
	})
	_, err := past.Client().CoreV1().ConfigMaps("default").Get(ctx, "a", metav1.GetOptions{})
	if !apierrors.IsResourceExpired(err) || !strings.Contains(err.Error(), "can be read") {
		t.Errorf("it says %v", err)
	}
	// The same to who reads as kubectl does, with At or with the revision in a list.
	where := "/api/v1/namespaces/default/configmaps"
	list := fmt.Sprintf("%s?resourceVersion=%d&resourceVersionMatch=Exact", where, past.Revision)
	for name, read := range map[string]func() (int, string, metav1.Table){
		"one":   func() (int, string, metav1.Table) { return asKubectl(t, past.RESTConfig(), where+"/a") },
		"all":   func() (int, string, metav1.Table) { return asKubectl(t, past.RESTConfig(), where) },
		"exact": func() (int, string, metav1.Table) { return asKubectl(t, overHTTPS(t, e), list) },
	} {
		if code, body, _ := read(); code != http.StatusGone || !strings.Contains(body, `"reason":"Expired"`) || !strings.Contains(body, "can be read") {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
}

// told reads HistoryPath.
func told(t *testing.T, e *core.Engine, query url.Values) (code int, text string, head core.HistoryHead, entries []core.HistoryEntry) {
	t.Helper()
	code, body := get(t, overHTTPS(t, e), core.HistoryPath+"?"+query.Encode())
	if code != http.StatusOK {
		return code, string(body), head, nil
	}
	lines := json.NewDecoder(strings.NewReader(string(body)))
	if err := lines.Decode(&head); err != nil {
		t.Fatal(err)
	}
	for lines.More() {
		var entry core.HistoryEntry
		if err := lines.Decode(&entry); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry)
	}
	return code, "", head, entries
}

func TestHistoryPath(t *testing.T) {
	embedded(t)
	ctx := t.Context()
	e := coretest.Start(t, core.Options{Listen: "127.0.0.1:0"})
	maps := e.Client().CoreV1().ConfigMaps("default")
	made, err := maps.Create(ctx, setting("a", "one"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Data["text"] = "two"
	changed, err := maps.Update(ctx, made, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, _, head, entries := told(t, e, url.Values{"resource": {"configmaps"}, "namespace": {"default"}, "name": {"a"}})
	if len(entries) != 3 || entries[0].Revision != revisionOf(t, made) || entries[2].New != nil || entries[1].Time == nil || head.Newest < entries[2].Revision {
		t.Errorf("%+v: %+v", head, entries)
	}
	_, _, head, entries = told(t, e, url.Values{"from": {made.ResourceVersion}, "to": {changed.ResourceVersion}, "resource": {"configmaps"}, "namespace": {"default"}, "name": {"a"}})
	if len(entries) != 1 || entries[0].Name != "a" || !strings.Contains(string(entries[0].Old), "one") || !strings.Contains(string(entries[0].New), "two") || head.From != revisionOf(t, made) {
		t.Errorf("%+v: %+v", head, entries)
	}
	for _, test := range []struct {
		query url.Values
		code  int
		text  string
	}{
		{url.Values{"from": {"yesterday"}}, 400, "is no moment"},
		{url.Values{"from": {"9999999999"}}, 400, "can be read"},
		{url.Values{"from": {"24h"}}, 410, "can be read"},
		{url.Values{"resource": {"unicorns"}, "name": {"a"}}, 400, "the store holds no unicorns"},
		{url.Values{"resource": {"configmaps"}, "namespace": {"default"}, "name": {"never"}}, 404, "can be read"},
		{url.Values{"name": {"a"}}, 400, "give resource and name"},
	} {
		if code, text, _, _ := told(t, e, test.query); code != test.code || !strings.Contains(text, test.text) {
			t.Errorf("%v: %d %s, not %d with %q", test.query, code, text, test.code, test.text)
		}
	}

	// Who may read the path sees what he may list, and nothing else.
	config := overHTTPS(t, e)
	config.Impersonate.UserName, config.Impersonate.Groups = "reader", []string{"system:authenticated"}
	if code, _ := get(t, config, core.HistoryPath+"?from="+made.ResourceVersion); code != http.StatusForbidden {
		t.Errorf("anybody gets %d", code)
	}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "historian"}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"get"}, NonResourceURLs: []string{core.HistoryPath}},
		{Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"configmaps"}},
	}}
	if _, err := e.Client().RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "historian"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "historian"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "reader"}}}
	if _, err := e.Client().RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"word": "open sesame"}}
	if _, err := e.Client().CoreV1().Secrets("default").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var body []byte
	coretest.Eventually(t, "the role to count", func(context.Context) (bool, error) {
		var code int
		code, body = get(t, config, core.HistoryPath+"?from="+made.ResourceVersion)
		return code == http.StatusOK && strings.Contains(string(body), `"name":"a"`), nil
	})
	if !strings.Contains(string(body), `secrets \"s\" is forbidden`) || strings.Contains(string(body), "b3BlbiBzZXNhbWU") {
		t.Errorf("the reader sees %s", body)
	}
}
