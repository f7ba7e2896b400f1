package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
)

// pastTransport turns reads into reads at one revision. The API serves lists at
// an exact revision, and nothing else: an object is a list of one.
type pastTransport struct {
	to        http.RoundTripper
	revision  int64
	forgotten func() error // nil while the revision can be read
}

var requests = apirequest.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}

func (t *pastTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	info, err := requests.NewRequestInfo(r)
	if err != nil {
		return nil, err
	}
	resource := schema.GroupResource{Group: info.APIGroup, Resource: info.Resource}
	switch {
	case !info.IsResourceRequest && r.Method == http.MethodGet:
		return t.to.RoundTrip(r) // discovery, version: the present's
	case !info.IsResourceRequest:
		return answer(r, apierrors.NewMethodNotSupported(schema.GroupResource{Resource: info.Path}, strings.ToLower(r.Method)))
	case info.Subresource != "" && info.Subresource != "status":
		return answer(r, apierrors.NewMethodNotSupported(resource, "read the past of "+info.Subresource))
	case info.Verb == "list":
		return t.list(r)
	case info.Verb == "get":
		return t.get(r, resource, info)
	case info.Verb == "watch":
		return t.watch(r, resource)
	}
	if r.Body != nil {
		r.Body.Close()
	}
	return answer(r, &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusMethodNotAllowed, Reason: metav1.StatusReasonMethodNotAllowed,
		Message: fmt.Sprintf("%s %s: revision %d is the past, which can only be read; write to a fork of it", info.Verb, resource, t.revision),
	}})
}

func (t *pastTransport) list(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	query := r.URL.Query()
	query.Del("resourceVersion")
	query.Del("resourceVersionMatch")
	if query.Get("continue") == "" { // which names the revision itself
		query.Set("resourceVersion", strconv.FormatInt(t.revision, 10))
		query.Set("resourceVersionMatch", string(metav1.ResourceVersionMatchExact))
	}
	r.URL.RawQuery = query.Encode()
	response, err := t.to.RoundTrip(r)
	if err != nil || response.StatusCode != http.StatusGone {
		return response, err
	}
	if forgotten := t.forgotten(); forgotten != nil {
		response.Body.Close()
		return answer(r, apierrors.NewResourceExpired(forgotten.Error()))
	}
	return response, nil
}

// get reads a list of the one object, as JSON. A table is the same for both, but
// must not be empty.
func (t *pastTransport) get(r *http.Request, resource schema.GroupResource, info *apirequest.RequestInfo) (*http.Response, error) {
	list := r.Clone(r.Context())
	list.URL.Path = path.Dir(list.URL.Path)
	if info.Subresource != "" {
		list.URL.Path = path.Dir(list.URL.Path)
	}
	list.URL.RawPath = ""
	query := url.Values{"fieldSelector": {fields.OneTermEqualSelector("metadata.name", info.Name).String()}}
	list.URL.RawQuery = query.Encode()
	kind := ""
	switch accept := r.Header.Get("Accept"); {
	case strings.Contains(accept, "as=Table"):
		list.Header.Set("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	case strings.Contains(accept, "as=PartialObjectMetadata"):
		kind = "PartialObjectMetadata"
		list.Header.Set("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
	default:
		list.Header.Set("Accept", "application/json")
	}
	response, err := t.list(list)
	if err != nil || response.StatusCode != http.StatusOK {
		return response, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	var found struct {
		APIVersion, Kind string
		Items            []map[string]json.RawMessage
		Rows             []json.RawMessage
	}
	if err := json.Unmarshal(data, &found); err != nil {
		return nil, fmt.Errorf("read %s %s at revision %d: %w", resource, info.Name, t.revision, err)
	}
	if len(found.Items)+len(found.Rows) == 0 {
		return answer(r, apierrors.NewNotFound(resource, info.Name))
	}
	if found.Kind == "Table" {
		return reply(r, http.StatusOK, data), nil
	}
	if kind == "" {
		kind = strings.TrimSuffix(found.Kind, "List")
	}
	item := found.Items[0]
	item["apiVersion"], _ = json.Marshal(found.APIVersion)
	item["kind"], _ = json.Marshal(kind)
	if data, err = json.Marshal(item); err != nil {
		return nil, err
	}
	return reply(r, http.StatusOK, data), nil
}

// watch is silent until the request ends: nothing follows the past. A watch that
// is to begin with a list is refused as servers that cannot do it refuse it;
// clients then list.
func (t *pastTransport) watch(r *http.Request, resource schema.GroupResource) (*http.Response, error) {
	query := r.URL.Query()
	if query.Get("sendInitialEvents") != "" {
		return answer(r, apierrors.NewInvalid(schema.GroupKind{Group: resource.Group, Kind: resource.Resource}, "",
			nil))
	}
	ctx, cancel := context.WithCancel(r.Context())
	if seconds, err := strconv.Atoi(query.Get("timeoutSeconds")); err == nil && seconds > 0 {
		ctx, cancel = context.WithTimeout(r.Context(), time.Duration(seconds)*time.Second)
	}
	response := reply(r, http.StatusOK, nil)
	response.ContentLength = -1
	response.Body = silence{ctx, cancel, r.Context()}
	return response, nil
}

// silence is a body without a byte, until its context ends.
type silence struct {
	ctx     context.Context
	cancel  context.CancelFunc
	request context.Context
}

func (s silence) Read([]byte) (int, error) {
	<-s.ctx.Done()
	if err := s.request.Err(); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

func (s silence) Close() error {
	s.cancel()
	return nil
}

// answer is the response for an error of the API.
func answer(r *http.Request, err error) (*http.Response, error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return nil, err
	}
	s := status.Status()
	s.Kind, s.APIVersion = "Status", "v1"
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return reply(r, int(s.Code), data), nil
}

func reply(r *http.Request, code int, data []byte) *http.Response {
	return &http.Response{
		Status: strconv.Itoa(code) + " " + http.StatusText(code), StatusCode: code,
		Proto: "HTTP/2.0", ProtoMajor: 2,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(strings.NewReader(string(data))),
		ContentLength: int64(len(data)),
		Request:       r,
	}
}
