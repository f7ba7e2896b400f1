package credentials_test

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/credentials"
)

func secret(kind v1.SecretType, key, text string) v1.Secret {
	return v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Type: kind, Data: map[string][]byte{key: []byte(text)}}
}

func TestFor(t *testing.T) {
	// The users say which entry was taken; "bWU6aHVzaA==" is me:hush.
	config := secret(v1.SecretTypeDockerConfigJson, v1.DockerConfigJsonKey, `{"auths": {
		"registry.example:5000": {"username": "all", "password": "x"},
		"registry.example:5000/team": {"username": "team", "password": "x"},
		"*.wild.example": {"username": "wild", "password": "x"},
		"https://index.docker.io/v1/": {"auth": "bWU6aHVzaA=="}}}`)
	old := secret(v1.SecretTypeDockercfg, v1.DockerConfigKey, `{"registry.example:5000": {"username": "old", "password": "x"}}`)
	opaque := secret(v1.SecretTypeOpaque, v1.DockerConfigJsonKey, `{"auths": {"registry.example:5000": {"username": "no", "password": "x"}}}`)
	for _, test := range []struct {
		image   string
		secrets []v1.Secret
		want    string
	}{
		{"registry.example:5000/app:1", []v1.Secret{config}, "all"},
		{"registry.example:5000/team/app@sha256:00", []v1.Secret{config}, "team all"},
		{"registry.example:5000/app:1", []v1.Secret{config, old}, "all old"},
		{"registry.example:5000/app:1", []v1.Secret{opaque}, ""},
		{"registry.example/app:1", []v1.Secret{config}, ""},
		{"a.wild.example/app:1", []v1.Secret{config}, "wild"},
		{"a.b.wild.example/app:1", []v1.Secret{config}, ""},
		{"docker.io/library/busybox:latest", []v1.Secret{config}, "me"},
		{"registry.example:5000/app:1", nil, ""},
	} {
		got, err := credentials.For(test.image, test.secrets)
		if err != nil {
			t.Fatal(err)
		}
		users := make([]string, len(got))
		for i, a := range got {
			users[i] = a.Username
		}
		if have := strings.Join(users, " "); have != test.want {
			t.Errorf("%s: users %q, want %q", test.image, have, test.want)
		}
	}
	for _, text := range []string{`{"auths": {"r": {"auth": "hush!"}}}`, `{"auths": "hush"}`, "hush"} {
		if got, err := credentials.For("r/app", []v1.Secret{secret(v1.SecretTypeDockerConfigJson, v1.DockerConfigJsonKey, text)}); err == nil || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "(s)") {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}
