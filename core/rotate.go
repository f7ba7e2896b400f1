package core

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// RotateKeyPath is where the API server changes the key of encrypted values:
// POST, answered with a KeyRotation as JSON. Whom a role allows "post" of the
// non-resource URL may do it.
const RotateKeyPath = "/encryption/rotate"

// KeyRotation tells of a change of the key.
type KeyRotation struct {
	// Written is how many objects are encrypted with the new key.
	Written int `json:"written"`
}

// RotateEncryptionKey makes a new key in DataDir/pki/encryption.yaml, encrypts
// with it what is stored, and returns how many objects that were. The key before
// stays in the file, for history and backups; the one before that goes.
func (e *Engine) RotateEncryptionKey(ctx context.Context) (int, error) {
	return e.parts.server.RotateEncryptionKey(ctx)
}

func (p *parts) rotateKey(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "rotate the key with POST", http.StatusMethodNotAllowed)
		return
	}
	written, err := p.server.RotateEncryptionKey(r.Context())
	switch {
	case errors.Is(err, apiserver.ErrNoEncryption):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(KeyRotation{written}) // the client is gone
	}
}

// EncryptionFile is where a data directory has the keys of encrypted values.
// Without it, nobody reads the Secrets in the store and in its backups.
func EncryptionFile(dataDir string) string {
	return filepath.Join(dataDir, "pki", apiserver.EncryptionFile)
}
