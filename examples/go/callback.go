// What an app takes over to receive turn callbacks: one file, standard library only.
//
// The rules are those of docs/protocol.md. Mount the handler outside of sessions and of CSRF
// protection, and give it something that keeps turns: receiver.go has files, paliad.go a database.
package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
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

// turns keeps what the callbacks bring.
type turns interface {
	// put returns without an error when the turn is safe, or when there is nothing to keep: a
	// duplicate, a turn that is not ours. It says in a word or two which. The context ends when
	// the sender has gone: what it gave up must not be written after what it sends next.
	put(ctx context.Context, t *turn) (done string, err error)
	// ready returns an error when a turn could not be kept now, without keeping one.
	ready(ctx context.Context) error
}

// turn is a callback's data as far as anything is done with it. There is no user in it: an app
// has its own record of who asked.
type turn struct {
	WebhookID       string  `json:"-"` // the same id is always the same content
	Backend         string  `json:"backend"`
	Persona         string  `json:"persona"`
	TurnID          string  `json:"turn_id"`
	SubmittedTurnID *string `json:"submitted_turn_id"` // an app looks for its own id here first, then in TurnID
	Revision        int64   `json:"revision"`
	Response        *string `json:"response"` // the answer, or nil where the turn failed
	Reason          *string `json:"reason"`   // why it failed, or nil
}

// callbacks is the handler: verify, parse, store, then answer.
type callbacks struct {
	keys  [][]byte
	turns turns
}

// newCallbacks takes one or more secrets whsec_<base64>, separated by spaces.
func newCallbacks(secrets string, turns turns) (*callbacks, error) {
	keys, err := parseKeys(secrets)
	return &callbacks{keys, turns}, err
}

// ServeHTTP takes one callback, and prints what happened, which never holds an answer.
func (c *callbacks) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	status, note := c.receive(req)
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

func (c *callbacks) receive(req *http.Request) (status int, note string) {
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
	if why := c.refusal(id, req.Header, body); why != "" {
		return http.StatusUnauthorized, "bad signature: " + why
	}
	kind, received, err := parse(body)
	if err != nil {
		return http.StatusBadRequest, id + " malformed"
	}
	if kind == "ping" {
		// The sender asks whether turns would be taken: that the process runs is not enough.
		if err := c.turns.ready(req.Context()); err != nil {
			return http.StatusServiceUnavailable, fmt.Sprintf("%s not ready: %v", id, err)
		}
	}
	if received == nil {
		// A ping, or a type of a later version: well received, nothing to keep.
		return http.StatusNoContent, fmt.Sprintf("%s %.40q", id, kind)
	}
	received.WebhookID = id
	done, err := c.turns.put(req.Context(), received)
	if err != nil {
		return http.StatusServiceUnavailable, fmt.Sprintf("%s not stored: %v", id, err) // the sender tries again
	}
	return http.StatusNoContent, id + " " + done
}

// refusal says why the sender did not make these very bytes, and lately; it is empty where it did.
func (c *callbacks) refusal(id string, header http.Header, body []byte) string {
	timestamp := header.Get("webhook-timestamp")
	if id == "" || !isTimestamp(timestamp) {
		return "no id or no stamp"
	}
	if !c.signed(id+"."+timestamp+".", header, body) {
		return "of another secret, or changed on the way"
	}
	seconds, _ := strconv.ParseInt(timestamp, 10, 64) // eleven digits fit
	if off := time.Until(time.Unix(seconds, 0)); off > tolerance || off < -tolerance {
		return fmt.Sprintf("its stamp is %+.0f s from this clock", off.Seconds())
	}
	return ""
}

func (c *callbacks) signed(prefix string, header http.Header, body []byte) bool {
	offered := strings.Split(header.Get("webhook-signature"), " ")
	// Several keys while a secret is being replaced, and as many signatures: one pair is enough.
	for _, key := range c.keys {
		mac := hmac.New(sha256.New, key)
		io.WriteString(mac, prefix)
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

// parse gives the callback's type, and the turn where it is about one.
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
