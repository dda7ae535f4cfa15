// A receiver of turn callbacks: verify, store, then answer. Standard library only.
//
//	go build -o receiver receiver.go
//	PALIADIN_CALLBACK_SECRET=whsec_… ./receiver 127.0.0.1:8080 turns
//
// The rules are those of docs/protocol.md. It speaks plain HTTP: put what ends TLS in front of
// it, or take the same steps in a handler of your app.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	maxBody       = 32 << 20
	tolerance     = 300 * time.Second
	leastKeyBytes = 24
)

var (
	isID        = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z`).MatchString
	isLabel     = regexp.MustCompile(`\A[a-z0-9-]{1,32}\z`).MatchString
	isTimestamp = regexp.MustCompile(`\A[0-9]{1,11}\z`).MatchString

	errMalformed = errors.New("malformed")
	errSecret    = errors.New("PALIADIN_CALLBACK_SECRET must hold one whsec_<base64> of 24 bytes or more, or several")
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: receiver HOST:PORT DIRECTORY (port 0 takes a free one)")
	}
	keys, err := parseKeys(os.Getenv("PALIADIN_CALLBACK_SECRET"))
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
		Handler:     &receiver{keys: keys, turns: &store{dir: os.Args[2]}},
		ReadTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, // keep-alive: a backlog comes over few connections
	}
	// What was answered 2xx is on disk, so any way to stop will do.
	log.Fatal(server.Serve(listener))
}

type receiver struct {
	keys  [][]byte
	turns *store
}

// ServeHTTP takes one callback, and prints what happened, which never holds an answer.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	status, note := r.receive(req)
	if status != http.StatusNoContent {
		w.Header().Set("Content-Length", "0")
	}
	w.WriteHeader(status)
	fmt.Printf("%d %s\n", status, note)
	if status == http.StatusRequestEntityTooLarge {
		// Read what is still being sent: a connection closed before that loses the answer.
		w.(http.Flusher).Flush()
		io.Copy(io.Discard, req.Body)
	}
}

func (r *receiver) receive(req *http.Request) (status int, note string) {
	if req.ContentLength > maxBody {
		return http.StatusRequestEntityTooLarge, "too large"
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, maxBody+1))
	if err != nil {
		return http.StatusBadRequest, "half a body"
	}
	if len(body) > maxBody {
		return http.StatusRequestEntityTooLarge, "too large"
	}
	id := req.Header.Get("webhook-id")
	if !r.verified(id, req.Header, body) {
		return http.StatusUnauthorized, "bad signature"
	}
	kind, received, err := parse(body)
	if err != nil {
		return http.StatusBadRequest, id + " malformed"
	}
	if received == nil {
		// A ping, or a type of a later version: well received, nothing to keep.
		return http.StatusNoContent, fmt.Sprintf("%s %.40q", id, kind)
	}
	done, err := r.turns.put(id, received)
	if err != nil {
		return http.StatusServiceUnavailable, fmt.Sprintf("%s not stored: %v", id, err) // the sender tries again
	}
	return http.StatusNoContent, id + " " + done
}

// verified tells whether the sender made these very bytes, and lately.
func (r *receiver) verified(id string, header http.Header, body []byte) bool {
	timestamp := header.Get("webhook-timestamp")
	if id == "" || !isTimestamp(timestamp) {
		return false
	}
	seconds, _ := strconv.ParseInt(timestamp, 10, 64) // eleven digits fit
	if age := time.Since(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
		return false
	}
	offered := strings.Split(header.Get("webhook-signature"), " ")
	// Several keys while a secret is being replaced, and as many signatures: one pair is enough.
	for _, key := range r.keys {
		mac := hmac.New(sha256.New, key)
		io.WriteString(mac, id+"."+timestamp+".")
		mac.Write(body)
		expected := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		for _, one := range offered {
			if hmac.Equal([]byte(expected), []byte(one)) {
				return true
			}
		}
	}
	return false
}

// turn is a callback's data as far as it is kept, and a file of the store. There is no user in
// it: an app has its own record of who asked.
type turn struct {
	WebhookIDs      []string `json:"webhook_ids"` // all that this file ever took
	Backend         string   `json:"backend"`
	Persona         string   `json:"persona"`
	TurnID          string   `json:"turn_id"`
	SubmittedTurnID *string  `json:"submitted_turn_id"` // an app looks for its own id here first, then in TurnID
	Revision        int64    `json:"revision"`
	Response        *string  `json:"response"` // the answer, or nil where the turn failed
	Reason          *string  `json:"reason"`   // why it failed, or nil
}

// parse gives the callback's type, and the turn where it tells of one.
func parse(body []byte) (kind string, received *turn, err error) {
	var callback struct {
		Type *string         `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	if !utf8.Valid(body) || json.Unmarshal(body, &callback) != nil || callback.Type == nil {
		return "", nil, errMalformed
	}
	kind = *callback.Type
	if kind != "turn.completed" && kind != "turn.failed" {
		return kind, nil, nil
	}
	received = &turn{}
	if json.Unmarshal(callback.Data, received) != nil {
		return kind, nil, errMalformed
	}
	hint := received.SubmittedTurnID
	if !isLabel(received.Backend) || !isLabel(received.Persona) || !isID(received.TurnID) ||
		hint != nil && !isID(*hint) || received.Revision < 1 {
		return kind, nil, errMalformed // nothing unchecked may reach a path
	}
	if kind == "turn.completed" {
		received.Reason = nil
	} else {
		received.Response = nil
	}
	if received.Response == nil && received.Reason == nil {
		return kind, nil, errMalformed
	}
	return kind, received, nil
}

// outranks tells whether t may replace old. An answer outranks a failure, then the higher
// revision wins: whatever the order of arrival, the end is the same.
func (t *turn) outranks(old *turn) bool {
	if (t.Response != nil) != (old.Response != nil) {
		return t.Response != nil
	}
	return t.Revision >= old.Revision
}

// store keeps one file for each turn; one process for each directory.
type store struct {
	dir string
	mu  sync.Mutex // what is compared must still be there when it is replaced
}

// put keeps the turn. When it returns without an error, not even a power cut loses it.
func (s *store) put(id string, t *turn) (done string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.dir, t.Backend+"_"+t.Persona+"_"+t.TurnID+".json")
	old, err := load(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	switch {
	case has(old.WebhookIDs, id):
		done = "duplicate"
	case err == nil && !t.outranks(old):
		done = "outranked"
	default:
		done = "stored"
		t.WebhookIDs = append(old.WebhookIDs, id)
		if err := replace(path, t); err != nil {
			return "", err
		}
	}
	// After a duplicate too: the first time, we may have died between the rename and this.
	return done, syncFile(s.dir)
}

func load(path string) (*turn, error) {
	old := &turn{}
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
func replace(path string, t *turn) error {
	content, err := json.Marshal(t)
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

// parseKeys gives the keys of one or more whsec_<base64>, separated by spaces.
func parseKeys(secrets string) (keys [][]byte, err error) {
	for _, secret := range strings.Fields(secrets) {
		encoded := strings.TrimRight(strings.TrimPrefix(secret, "whsec_"), "=")
		key, err := base64.RawStdEncoding.DecodeString(encoded)
		if err != nil || len(key) < leastKeyBytes {
			return nil, errSecret
		}
		keys = append(keys, key)
	}
	if keys == nil {
		return nil, errSecret
	}
	return keys, nil
}
