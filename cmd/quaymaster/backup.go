package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/storage"
)

func newBackup() *cobra.Command {
	var from cluster
	var output, since string
	var keys []string
	command := &cobra.Command{
		Use:   "backup -o FILE",
		Short: "Copy every object of a running server to a file",
		Long: `Backup copies every object as it is at one revision, while the server works. With
--since it copies what happened after an earlier backup alone. The server must
still know that: see --history of "quaymaster up". FILE appears, readable by you
alone, when it has been read through and is whole. The backup of a server with
--store-key is encrypted with that key; any other with --key FILE, before it is
written. Keep a copy of the key's file apart from the backups.

Secrets are encrypted in any case. The keys in DATA/pki are not in the backup:
keep a copy of DATA/pki/encryption.yaml too, without which nobody reads them.

Only administrators may do it, and whom a role allows "get" of the non-resource
URL /backup.`,
		Example: `  quaymaster backup -o monday.qmb
  quaymaster backup -o tuesday.qmb --since monday.qmb
  quaymaster store new-key backup.key && quaymaster backup -o monday.qmb --key backup.key
  quaymaster restore monday.qmb tuesday.qmb --data ./data`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := storage.ReadKeys(keys...)
			if err != nil {
				return fmt.Errorf("--key: %w", err)
			}
			after, err := parseSince(cmd, k, since)
			if err != nil {
				return err
			}
			config, _, err := from.config()
			if err != nil {
				return err
			}
			info, err := download(cmd, config, k, output, after)
			if err != nil {
				return fmt.Errorf("back up: %w", err)
			}
			return printBackup(cmd, output, info)
		},
	}
	flags := command.Flags()
	flags.StringVarP(&output, "output", "o", "", "the file to write, which must not exist")
	flags.StringVar(&since, "since", "", "copy what happened after this backup (a file) or revision (a number)")
	flags.StringSliceVar(&keys, "key", nil, "file with the key to encrypt it with, or to read what the server encrypted through with")
	from.kubeconfigFlag(command)
	if err := command.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is above
	}
	command.AddCommand(newBackupVerify())
	return command
}

func newBackupVerify() *cobra.Command {
	var keys []string
	command := &cobra.Command{
		Use:   "verify FILE…",
		Short: "Read backups through and tell whether they are whole and in order",
		Long: `Verify reads a backup and the increments that follow it. Of an encrypted one it
tells without its key that every byte is there, with it that the objects are, too.`,
		Example: "  quaymaster backup verify monday.qmb tuesday.qmb --key store.key",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := storage.ReadKeys(keys...)
			if err != nil {
				return fmt.Errorf("--key: %w", err)
			}
			info, err := withFiles(cmd, args, k.Verify)
			if err != nil {
				return missingKey(err)
			}
			return printBackup(cmd, strings.Join(args, " "), info)
		},
	}
	command.Flags().StringSliceVar(&keys, "key", nil, "file with the key that they are encrypted with")
	return command
}

// missingKey says how to give the key that an error says is missing.
func missingKey(err error) error {
	if errors.Is(err, storage.ErrEncrypted) {
		return fmt.Errorf("%w (--key FILE, once for each file; a store's key file keeps the keys before it)", err)
	}
	return err
}

func newRestore() *cobra.Command {
	var data string
	var keys []string
	var opts storage.RestoreOptions
	command := &cobra.Command{
		Use:   "restore FILE…",
		Short: "Make the objects of a new server from backups",
		Long: `Restore takes a full backup and the increments that follow it, in their order. DIR
must not hold objects; keys in DIR/pki are kept. Put encryption.yaml of the server
that was backed up there: the Secrets are encrypted with it. Without the other keys
a server makes new ones: agents and clients then need new credentials. Objects keep their UIDs
and resource versions. Start the server with "quaymaster up --data DIR" or
"quaymaster server --data DIR".

Encrypted backups need the file with their key: --key, or --store-key when the new
store is to have the same. Their objects are written encrypted with --store-key;
--decrypt has them in the clear.`,
		Example: `  quaymaster restore monday.qmb tuesday.qmb --data ./data --to 48210
  quaymaster restore monday.qmb --data ./data --store-key ./store.key
  quaymaster restore monday.qmb --data ./data --store-key ./new.key --key ./old.key`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if opts.Keys, err = storage.ReadKeys(keys...); err != nil {
				return fmt.Errorf("--key: %w", err)
			}
			if opts.Clear && opts.KeyFile != "" {
				return errors.New("--decrypt and --store-key exclude one another")
			}
			info, err := withFiles(cmd, args, func(files ...io.Reader) (storage.Info, error) {
				return core.Restore(data, opts, files...)
			})
			switch {
			case errors.Is(err, storage.ErrClear):
				return fmt.Errorf("%w: --store-key FILE, or --decrypt", err)
			case err != nil:
				return missingKey(err)
			}
			at := info.Revision
			if opts.To != 0 {
				at = opts.To
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has the objects of revision %d; it goes on at %d\n", data, at, info.Revision+storage.RestoreGap)
			if _, missing := os.Stat(core.EncryptionFile(data)); missing != nil && err == nil {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "put the file encryption.yaml of the server that was backed up at %s before you start it\n", core.EncryptionFile(data))
			}
			return err
		},
	}
	command.Flags().StringVar(&data, "data", "", "data directory of the new server")
	command.Flags().Int64Var(&opts.To, "to", 0, "restore the state of this revision (default: the last)")
	command.Flags().StringSliceVar(&keys, "key", nil, "file with the key of encrypted backups, beside that of --store-key")
	command.Flags().StringVar(&opts.KeyFile, "store-key", "", "file with the key that the store is to be encrypted with; made when missing")
	command.Flags().BoolVar(&opts.Clear, "decrypt", false, "write what was encrypted in the clear")
	if err := command.MarkFlagRequired("data"); err != nil {
		panic(err) // the flag is above
	}
	return command
}

func printBackup(cmd *cobra.Command, name string, info storage.Info) error {
	from, changes := "full", fmt.Sprintf("%d changes", info.Changes)
	if info.Since > 0 {
		from = fmt.Sprintf("since revision %d", info.Since)
	}
	if info.Key != "" {
		from += ", encrypted with key " + info.Key
		if info.Changes == 0 {
			changes = "whole, not opened"
		}
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, to revision %d, %s, %d bytes, made %s of store %.8s\n", name, from,
		info.Revision, changes, info.Bytes, info.Created.Format(time.RFC3339), hex.EncodeToString(info.Store[:]))
	return err
}

// parseSince reads the value of --since. A backup is verified first: an
// increment to one that cannot be read is worth nothing.
func parseSince(cmd *cobra.Command, keys storage.Keys, since string) (storage.Info, error) {
	if since == "" {
		return storage.Info{}, nil
	}
	if rev, err := strconv.ParseInt(since, 10, 64); err == nil {
		if rev < 1 {
			return storage.Info{}, fmt.Errorf("--since %s: revisions begin at 1", since)
		}
		return storage.Info{Revision: rev}, nil
	}
	info, err := withFiles(cmd, []string{since}, keys.Verify)
	if err != nil {
		return info, fmt.Errorf("--since: %w", missingKey(err))
	}
	return info, nil
}

// download writes what the server sends to a file of that name, once it has
// been verified, and encrypted, on its way.
func download(cmd *cobra.Command, config *rest.Config, keys storage.Keys, name string, after storage.Info) (info storage.Info, err error) {
	if _, err := os.Lstat(name); err == nil {
		return info, fmt.Errorf("%s exists; choose another name", name)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return info, err
	}
	query := url.Values{}
	if after.Revision > 0 {
		query.Set("since", strconv.FormatInt(after.Revision, 10))
	}
	answer, err := open(cmd, config, core.BackupPath, query)
	if err != nil {
		return info, err
	}
	defer answer.Close()
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*") // mode 0600
	if err != nil {
		return info, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	read := newProgress(cmd, "received", answer, 0)
	info, err = keys.Encrypt(file, read)
	read.end()
	err = missingKey(err)
	if err == nil && after.Store != [16]byte{} && info.Store != after.Store {
		err = fmt.Errorf("%w: this server's objects are not those of --since", storage.ErrOrder)
	}
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return info, err
	}
	if err = os.Link(file.Name(), name); err == nil || errors.Is(err, fs.ErrExist) {
		return info, err // unlike a rename it replaces nothing
	}
	return info, os.Rename(file.Name(), name) // a file system without links
}

// withFiles opens backups for do, with progress over all of them.
func withFiles(cmd *cobra.Command, names []string, do func(...io.Reader) (storage.Info, error)) (info storage.Info, err error) {
	var readers []io.Reader
	for _, name := range names {
		file, err := os.Open(name)
		if err != nil {
			return info, err
		}
		defer file.Close()
		stat, err := file.Stat()
		if err != nil {
			return info, err
		}
		read := newProgress(cmd, "read "+name, file, stat.Size())
		defer read.end()
		readers = append(readers, namedReader{read, name})
	}
	return do(readers...)
}

type namedReader struct {
	io.Reader
	name string
}

func (r namedReader) Name() string { return r.name }

// steps tells on standard error of a long work that has no reader: what is done of
// how much, once a second, and its end when it has a known one.
func steps(cmd *cobra.Command, of string) func(what string, done, total int64) {
	told := time.Now()
	return func(what string, done, total int64) {
		now := time.Now()
		ended := total > 0 && done == total
		if now.Sub(told) < time.Second && !ended {
			return
		}
		told = now
		text := strconv.FormatInt(done, 10)
		if total > 0 {
			text += " of " + strconv.FormatInt(total, 10)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s: %s\n", of, what, text)
	}
}

// progress tells on standard error how far a reader has come, once a second and
// only when it takes longer than that. It fails when the command is interrupted.
type progress struct {
	io.Reader
	ctx         context.Context
	out         io.Writer
	what        string
	done, total int64 // bytes; total 0: not known
	begin, told time.Time
}

func newProgress(cmd *cobra.Command, what string, r io.Reader, total int64) *progress {
	return &progress{Reader: r, ctx: cmd.Context(), out: cmd.ErrOrStderr(), what: what, total: total}
}

func (p *progress) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	now := time.Now()
	if p.begin.IsZero() {
		p.begin, p.told = now, now
	}
	n, err := p.Reader.Read(b)
	p.done += int64(n)
	if now.Sub(p.told) >= time.Second {
		p.told = now
		p.tell(now)
	}
	return n, err
}

func (p *progress) tell(now time.Time) {
	const mega = 1e6
	text := fmt.Sprintf("%s: %.0f MB", p.what, float64(p.done)/mega)
	if p.total > 0 {
		text += fmt.Sprintf(" of %.0f (%d %%)", float64(p.total)/mega, 100*p.done/p.total)
	}
	fmt.Fprintf(p.out, "%s, %.0f MB/s\n", text, float64(p.done)/mega/now.Sub(p.begin).Seconds())
}

// end tells the last state if anything was told before.
func (p *progress) end() {
	if p.told.After(p.begin) {
		p.tell(time.Now())
	}
}
