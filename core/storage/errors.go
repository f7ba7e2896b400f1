package storage

import (
	"errors"
	"fmt"
)

var (
	// ErrClosed is returned by every call that begins after Close.
	ErrClosed = errors.New("storage: closed")

	// ErrInUse is returned by Open when another store, in this process or
	// another, has the directory open. End that one first.
	ErrInUse = errors.New("in use by another process")

	// ErrEncrypted is returned by Open for an encrypted directory, and by Verify and
	// Restore for an encrypted backup, when the key is missing or is another's.
	// Nothing has been changed.
	ErrEncrypted = errors.New("encrypted")

	// ErrClear is returned by Restore when encrypted backups would become a store
	// in the clear and nobody asked for that.
	ErrClear = errors.New("what is encrypted would be in the clear")

	// ErrNewerFormat is returned by Open when a newer version wrote the
	// directory, and by Verify and Restore when it wrote the backup. Nothing has
	// been changed in it.
	ErrNewerFormat = errors.New("written by a newer version")

	// ErrForeign is returned by Open when the directory holds something that is
	// not a store, so that it is not damaged.
	ErrForeign = errors.New("not a store")

	// ErrNoSpace is returned by writes while the file system has less than
	// Options.MinFree left, and by Open and Close when it has less than half of
	// that. Nothing was written; writes are accepted again when there is room.
	ErrNoSpace = errors.New("storage: disk full")

	// ErrFailed is returned by writes after one could not be made durable. What
	// that write left is known only after a restart; reads go on.
	ErrFailed = errors.New("storage: a write failed, restart to write again")

	// ErrTooLarge is returned for a write of a key above MaxKey or a value above
	// MaxValue.
	ErrTooLarge = errors.New("storage: too large")

	// ErrCompacted is returned by Backup for an increment whose beginning the
	// store has forgotten, and by Restore for a revision before the full backup.
	ErrCompacted = errors.New("that is no longer known")

	// ErrFuture is returned by Backup and Restore for a revision that has not
	// been reached.
	ErrFuture = errors.New("that has not happened yet")

	// ErrDamaged is returned by Verify and Restore for what is not a backup, or
	// not all of one as it was written.
	ErrDamaged = errors.New("the backup is damaged")

	// ErrOrder is returned by Verify and Restore for backups that do not follow
	// one another: a full one first, then increments of the same store.
	ErrOrder = errors.New("the backups do not follow one another")

	// ErrExists is returned by Restore when the directory is not empty.
	ErrExists = errors.New("is not empty")
)

// Limits in bytes. MaxValue is etcd's default for a request.
const (
	MaxKey   = 4 << 10
	MaxValue = 3 << 19
)

// ConflictError says that a key was not at the revision that a write expected.
type ConflictError struct {
	Key     string
	Current int64 // its revision, 0 when absent
}

func (e *ConflictError) Error() string {
	if e.Current == 0 {
		return fmt.Sprintf("storage: %s does not exist", e.Key)
	}
	return fmt.Sprintf("storage: %s is at revision %d", e.Key, e.Current)
}
