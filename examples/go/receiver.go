// A receiver of turn callbacks that keeps them in files. Standard library only.
//
//	go build -o receiver callback.go receiver.go
//	PALIADIN_CALLBACK_SECRET=whsec_… ./receiver 127.0.0.1:8080 turns
//
// It speaks plain HTTP: put what ends TLS in front of it, or take callback.go into your app.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: receiver HOST:PORT DIRECTORY (port 0 takes a free one)")
	}
	handler, err := newCallbacks(os.Getenv("PALIADIN_CALLBACK_SECRET"), &store{dir: os.Args[2]})
	if err != nil {
		log.Fatal(err)
	}
	// Answers are for nobody else on this host.
	if err := os.MkdirAll(os.Args[2], 0o700); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	server := &http.Server{
		Handler:     handler,
		ReadTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, // keep-alive: a backlog comes over few connections
	}
	// What was answered 2xx is on disk, so any way to stop will do.
	log.Fatal(server.Serve(listener))
}

// store keeps one file for each turn, by the id under which the app asked; one process for each
// directory.
type store struct {
	dir string
	mu  sync.Mutex // what is compared must still be there when it is replaced
}

// kept is a file of the store.
type kept struct {
	WebhookIDs []string `json:"webhook_ids"` // all that this file ever took
	turn
}

// put keeps the turn. When it returns without an error, not even a power cut loses it.
func (s *store) put(_ context.Context, t *turn) (done string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.dir, t.asked()+".json")
	old, err := load(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	switch {
	case has(old.WebhookIDs, t.WebhookID):
		done = "duplicate"
	case err == nil && !t.outranks(&old.turn):
		done = "outranked"
	default:
		done = "stored"
		if err := replace(path, &kept{append(old.WebhookIDs, t.WebhookID), *t}); err != nil {
			return "", err
		}
	}
	// After a duplicate too: the first time, we may have died between the rename and this.
	return done, syncFile(s.dir)
}

// ready writes and removes a file, as put does.
func (s *store) ready(context.Context) error {
	file, err := os.CreateTemp(s.dir, ".ping-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := file.WriteString("ping"); err != nil {
		return err
	}
	return file.Sync()
}

// asked gives the id under which the app asked, as far as the callback says.
func (t *turn) asked() string {
	if t.SubmittedTurnID != nil {
		return *t.SubmittedTurnID
	}
	return t.TurnID
}

// outranks says whether t may replace old. An answer outranks a failure. An answer is replaced
// only by its own file, so that a file which names another's turn cannot rewrite it. Of one file
// the higher revision counts.
func (t *turn) outranks(old *turn) bool {
	if (t.Response != nil) != (old.Response != nil) {
		return t.Response != nil
	}
	if t.Backend != old.Backend || t.Persona != old.Persona || t.TurnID != old.TurnID {
		return t.Response == nil
	}
	return t.Revision >= old.Revision
}

func load(path string) (*kept, error) {
	old := &kept{}
	content, err := os.ReadFile(path)
	if err != nil {
		return old, err
	}
	return old, json.Unmarshal(content, old)
}

func has(ids []string, id string) bool {
	for _, one := range ids {
		if one == id {
			return true
		}
	}
	return false
}

// replace writes a file such that after a crash it is the old one or the new one, and whole.
func replace(path string, k *kept) error {
	content, err := json.Marshal(k)
	if err != nil {
		return err
	}
	temporary := path + ".tmp" // one writer at a time, so a leftover is overwritten
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return err
	}
	if err := syncFile(temporary); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// syncFile returns when a file's content, or a directory's names, are on the disk.
func syncFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}
