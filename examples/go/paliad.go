// The callback in an app like paliad: a route beside the pages of people who are logged in, and
// PostgreSQL. docs/paliad.md tells the why. It connects as PGHOST, PGUSER and so on say, to tables
//
//	turns    (id uuid PRIMARY KEY, user_id uuid, answer text)
//	sessions (token text PRIMARY KEY, user_id uuid)
//
// On Debian, with the package golang-github-lib-pq-dev:
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o paliad callback.go paliad.go
//	PALIADIN_CALLBACK_SECRET=whsec_… ./paliad 127.0.0.1:8080
package main

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"

	_ "github.com/lib/pq"
)

const (
	find   = `SELECT answer IS NOT NULL FROM turns WHERE id = $1`
	update = `UPDATE turns SET answer = $1 WHERE id = $2 AND (answer IS NULL OR $3::bigint > 1)`

	// Changes no row, and fails where update would: no database, no table, no right, a standby.
	tryUpdate = `UPDATE turns SET answer = answer WHERE false`

	// The sender waits 10 s. What it has given up must have ended before it tries again.
	patience = 5 * time.Second
	// How long a page waits for its answer.
	deadline = 5 * time.Minute
)

var (
	// Another id would be an error in the database, and none of the sender's: paliad's are UUIDs.
	isUUID = regexp.MustCompile(`\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\z`).MatchString

	opening = regexp.MustCompile(`(?m)^\[paliadin-meta\][ \t]*\r?$`)
	closing = regexp.MustCompile(`(?m)^\[/paliadin-meta\][ \t]*\r?$`)
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: paliad HOST:PORT (port 0 takes a free one)")
	}
	db, err := sql.Open("postgres", "") // connects when it is first used
	if err != nil {
		log.Fatal(err)
	}
	app := &app{db: db, waiting: map[string]map[chan *turn]bool{}}
	callbacks, err := newCallbacks(os.Getenv("PALIADIN_CALLBACK_SECRET"), app)
	if err != nil {
		log.Fatal(err)
	}
	pages := http.NewServeMux()
	pages.HandleFunc("/turns/", app.page)
	routes := http.NewServeMux()
	routes.Handle("/", app.protected(pages))
	routes.Handle("/paliadin/callback", callbacks) // protected by its signature alone

	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	server := &http.Server{
		Handler:     routes,
		ReadTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, // keep-alive: a backlog comes over few connections
	}
	// What was answered 2xx is committed, so any way to stop will do.
	log.Fatal(server.Serve(listener))
}

type app struct {
	db      *sql.DB
	mu      sync.Mutex
	waiting map[string]map[chan *turn]bool // the open pages, by turn
}

// put stores an answer where there is none yet, or a newer one, and tells the open pages.
func (a *app) put(ctx context.Context, t *turn) (done string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	id, answered, err := a.find(ctx, t)
	if errors.Is(err, sql.ErrNoRows) {
		return "unknown", nil // another app or a test may have asked
	}
	if err != nil {
		return "", err
	}
	if t.Response == nil {
		if answered {
			return "outranked", nil
		}
		a.tell(id, t)
		return "told", nil
	}
	// PostgreSQL's text has no U+0000: it would refuse the answer for ever.
	answer := strings.ReplaceAll(withoutTrailer(*t.Response), "\x00", "\uFFFD")
	result, err := a.db.ExecContext(ctx, update, answer, id, t.Revision)
	if err != nil {
		return "", err
	}
	changed, err := result.RowsAffected()
	if err != nil {
		return "", err
	}
	if changed == 0 {
		return "duplicate", nil
	}
	a.tell(id, t)
	return "stored", nil
}

// ready asks the database whether it would take an answer now.
func (a *app) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := a.db.ExecContext(ctx, tryUpdate)
	return err
}

// find gives the id under which paliad has the turn, or sql.ErrNoRows.
func (a *app) find(ctx context.Context, t *turn) (id string, answered bool, err error) {
	ids := []string{t.TurnID}
	if t.SubmittedTurnID != nil {
		ids = []string{*t.SubmittedTurnID, t.TurnID}
	}
	err = sql.ErrNoRows
	for _, id = range ids {
		if !isUUID(id) {
			continue
		}
		err = a.db.QueryRowContext(ctx, find, id).Scan(&answered)
		if !errors.Is(err, sql.ErrNoRows) {
			break
		}
	}
	return id, answered, err
}

// withoutTrailer gives the answer as people see it.
func withoutTrailer(response string) string {
	blocks := opening.FindAllStringIndex(response, -1)
	if blocks == nil {
		return response
	}
	last := blocks[len(blocks)-1]
	rest := response[last[1]:]
	if end := closing.FindStringIndex(rest); end != nil && strings.TrimSpace(rest[end[1]:]) != "" {
		return response // the answer goes on: it quotes a trailer
	}
	return strings.TrimRightFunc(response[:last[0]], unicode.IsSpace)
}

// tell hands the news to the open pages. With several processes, this would be a NOTIFY.
func (a *app) tell(id string, t *turn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for news := range a.waiting[id] {
		select {
		case news <- t:
		default: // the last news is still to be taken, and then the page looks into the database
		}
	}
}

func (a *app) join(id string) (news chan *turn, leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	news = make(chan *turn, 1)
	if a.waiting[id] == nil {
		a.waiting[id] = map[chan *turn]bool{}
	}
	a.waiting[id][news] = true
	return news, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.waiting[id], news)
		if len(a.waiting[id]) == 0 {
			delete(a.waiting, id)
		}
	}
}

// page shows a turn's answer to whom it belongs, as soon as there is one.
func (a *app) page(w http.ResponseWriter, req *http.Request) {
	id := strings.TrimPrefix(req.URL.Path, "/turns/")
	switch {
	case req.Method != http.MethodGet:
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	case !isUUID(id):
		http.NotFound(w, req)
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), deadline)
	defer cancel()
	news, leave := a.join(id) // before the look: what comes after it is news
	defer leave()
	reason := ""
	for {
		var answer sql.NullString
		err := a.db.QueryRowContext(ctx, `SELECT answer FROM turns WHERE id = $1 AND user_id = $2`,
			id, ctx.Value(userKey{})).Scan(&answer)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			http.NotFound(w, req)
			return
		case err != nil:
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		case answer.Valid:
			w.Header().Set("Content-Type", "text/markdown; charset=utf-8")
			io.WriteString(w, answer.String)
			return
		case reason != "":
			http.Error(w, reason, http.StatusBadGateway)
			return
		}
		select {
		case t := <-news:
			if t.Response == nil {
				reason = "failed: " + *t.Reason // but look once more: a good file may have followed
			}
		case <-ctx.Done():
			http.Error(w, "no answer yet", http.StatusGatewayTimeout)
			return
		}
	}
}

// userKey is where a request's context has the user who is logged in.
type userKey struct{}

// protected stands for the app's own middleware: a session, and a CSRF token for what changes.
func (a *app) protected(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var user string
		err := a.db.QueryRowContext(req.Context(), `SELECT user_id FROM sessions WHERE token = $1`,
			cookie(req, "session")).Scan(&user)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			http.Error(w, "log in", http.StatusUnauthorized)
			return
		case err != nil:
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		token, sent := cookie(req, "csrf"), req.Header.Get("X-CSRF-Token")
		if req.Method != http.MethodGet &&
			(token == "" || subtle.ConstantTimeCompare([]byte(token), []byte(sent)) == 0) {
			http.Error(w, "no CSRF token", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, req.WithContext(context.WithValue(req.Context(), userKey{}, user)))
	})
}

func cookie(req *http.Request, name string) string {
	found, err := req.Cookie(name)
	if err != nil {
		return ""
	}
	return found.Value
}
