package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/core/storage"
)

func newStore() *cobra.Command {
	command := &cobra.Command{
		Use:   "store",
		Short: "Make keys; encrypt the store of a stopped server, change its key, rewrite it",
	}
	command.AddCommand(newStoreNewKey(), newStoreRotateKey(), newStoreRewrite())
	return command
}

func storeFlags(command *cobra.Command, data, key *string) {
	command.Flags().StringVar(data, "data", "", "data directory of the server, which must be stopped")
	command.Flags().StringVar(key, "store-key", "", "file with the store's key")
	if err := command.MarkFlagRequired("data"); err != nil {
		panic(err) // the flag is above
	}
}

func newStoreNewKey() *cobra.Command {
	return &cobra.Command{
		Use:   "new-key FILE",
		Short: "Make a key for --store-key, or for backup --key",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := storage.NewKey(args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s holds a new key; keep a copy of it apart from what it encrypts\n", args[0])
			return err
		},
	}
}

func newStoreRotateKey() *cobra.Command {
	var data, key string
	command := &cobra.Command{
		Use:   "rotate-key",
		Short: "Give an encrypted store a new key",
		Long: `Rotate-key makes a new key in the file of the old one. It takes moments: the keys
that the data is encrypted with are encrypted anew, the data is not. Those keys
change by themselves every ten days for what is written then. "quaymaster store
rewrite" encrypts everything anew.

The old key stays in the file, below the new one: it opens the backups of its
time. Remove its line when you need them no more.`,
		Example: "  quaymaster store rotate-key --data ./data --store-key ./store.key",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := storage.RotateKey(filepath.Join(data, "store"), key); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s holds a new key; the old one stays below it and opens backups alone\n", key)
			return err
		},
	}
	storeFlags(command, &data, &key)
	if err := command.MarkFlagRequired("store-key"); err != nil {
		panic(err) // storeFlags made it
	}
	return command
}

func newStoreRewrite() *cobra.Command {
	var data, key, into string
	var decrypt bool
	command := &cobra.Command{
		Use:   "rewrite",
		Short: "Write a store anew: encrypted, with new keys, or in the clear",
		Long: `Rewrite copies the store with all its history to new files and puts them in the
place of the old ones. It needs room for a second store, and tells how far it is.
Interrupted, it leaves the old one.`,
		Example: `  quaymaster store rewrite --data ./data --new-key ./store.key                          # encrypt
  quaymaster store rewrite --data ./data --store-key ./store.key --new-key ./store.key  # all keys anew
  quaymaster store rewrite --data ./data --store-key ./store.key --decrypt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if decrypt == (into != "") {
				return fmt.Errorf("say --new-key FILE, or --decrypt to have it in the clear")
			}
			tell := steps(cmd, data)
			if err := storage.Rewrite(filepath.Join(data, "store"), key, into, func(done, total int64) {
				tell("MB rewritten, about", done/1e6, total/1e6)
			}); err != nil {
				return err
			}
			state := "encrypted with the key in " + into + ": start the server with --store-key " + into
			if decrypt {
				state = "in the clear"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "the store in %s is %s\n", data, state)
			return err
		},
	}
	storeFlags(command, &data, &key)
	command.Flags().StringVar(&into, "new-key", "", "file for the new key; it may be that of the old one")
	command.Flags().BoolVar(&decrypt, "decrypt", false, "write it in the clear")
	return command
}
