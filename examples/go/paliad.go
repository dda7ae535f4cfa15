// The callback in an app like paliad: a route beside the pages of people who are logged in, and
// PostgreSQL. docs/paliad.md says why. It connects as PGHOST, PGUSER and so on say, to tables
//
//	paliad.paliadin_turns (id uuid PRIMARY KEY, user_id uuid, response text, error_code text)
//	sessions              (token text PRIMARY KEY, user_id uuid)
//
// With -revisions the first one has two columns more, answer_file text and answer_revision bigint,
// and an agent that changes its answer changes what is stored.
//
// Several processes may run behind one address, on one database: a page that is open at one of them
// gets what the callback brought to another.
//
// On Debian, with the package golang-github-lib-pq-dev:
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o paliad callback.go paliad.go
//	PALIADIN_CALLBACK_SECRET=whsec_… ./paliad [-revisions] 127.0.0.1:8080
package main

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"flag"
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

	"github.com/lib/pq"
)

const (
	find = `SELECT id FROM paliad.paliadin_turns WHERE id = $1`
	// Whoever reads `late` knows that somebody had seen before that there is no answer.
	fill = `UPDATE paliad.paliadin_turns
SET response = $1, error_code = CASE WHEN error_code IS NOT NULL THEN 'late' END
WHERE id = $2 AND response IS NULL`
	fillOrRevise = `UPDATE paliad.paliadin_turns
SET response = $1, answer_file = $3, answer_revision = $4,
    error_code = CASE WHEN error_code IS NOT NULL THEN 'late' END
WHERE id = $2 AND (response IS NULL OR answer_file = $3 AND answer_revision <= $4)`
	show = `SELECT response, error_code FROM paliad.paliadin_turns WHERE id = $1 AND user_id = $2`
	fail = `UPDATE paliad.paliadin_turns SET error_code = $1 WHERE id = $2 AND response IS NULL`
	// Changes nothing, and fails wherever an update would: on a standby, without the right to it.
	tryUpdate = `UPDATE paliad.paliadin_turns SET response = response WHERE false`
	// After the commit, never inside the transaction: there, all commits of the server that notify
	// wait for each other.
	notify = `SELECT pg_notify('paliadin_turns', $1)`
	// Of the turns that pages wait for, those that need no longer be waited for.
	ended = `SELECT id FROM paliad.paliadin_turns
WHERE id = ANY($1) AND (response IS NOT NULL OR error_code IS NOT NULL)`

	// The sender waits 10 s. What it has given up must have ended before it tries again.
	patience = 5 * time.Second
	// How often this process asks the database for all its open pages, whatever notifications came.
	pollEvery = 2 * time.Second
	// How often this process notifies itself, so that its listening connection hears something.
	proveEvery = 10 * time.Second
	// A connection on which nothing came for so long is dead, even if nobody closed it: a statement
	// ends before that, and a listening connection hears the proof.
	silence = proveEvery + patience
	// What one process may have open, besides the connection that listens.
	connections = 10
	// How long a page waits for its answer.
	deadline = 5 * time.Minute
)

var (
	// Another id would be an error in the database, and none of the sender's: paliad's are UUIDs.
	isUUID = regexp.MustCompile(`\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\z`).MatchString

	opening = regexp.MustCompile(`(?m)^\[paliadin-meta\][ \t]*\r?$`)
	closing = regexp.MustCompile(`(?m)^\[/paliadin-meta\][ \t]*\r?$`)
	// A line that opens or closes a block of code, as Markdown has it.
	fence = regexp.MustCompile("(?m)^ {0,3}(`{3,}|~{3,})([^`\n]*)$\n?")
	// What a line of text has and no line of a trailer: words, and no value's name before them.
	words = regexp.MustCompile("^[ \\t]*[^\\s\"'\\[\\]{}`~*-]\\S*[ \\t]+\\S").MatchString
	named = regexp.MustCompile(`^[ \t]*([a-z]|\w+_)[\w-]*["']?[ \t]*[:=]`).MatchString
)

func main() {
	log.SetFlags(0)
	revisions := flag.Bool("revisions", false, "a newer revision of an answer's file replaces it")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: paliad [-revisions] HOST:PORT (port 0 takes a free one)")
	}
	// A statement is prepared and run in one round trip. In two, a pooler in transaction mode may give
	// each to another connection of the server.
	connector, err := pq.NewConnector("binary_parameters=yes")
	if err != nil {
		log.Fatal(err)
	}
	connector.Dialer(dialer{})
	db := sql.OpenDB(connector) // connects when it is first used
	// A thousand pages that are notified at once must not need a thousand connections.
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	app := &app{db: db, revisions: *revisions, waiting: map[string]map[chan struct{}]bool{}}
	callbacks, err := newCallbacks(os.Getenv("PALIADIN_CALLBACK_SECRET"), app)
	if err != nil {
		log.Fatal(err)
	}
	pages := http.NewServeMux()
	pages.HandleFunc("/turns/", app.page)
	routes := http.NewServeMux()
	routes.Handle("/", app.protected(pages))
	routes.Handle("/paliadin/callback", callbacks) // protected by its signature alone

	listener, err := net.Listen("tcp", flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	app.listenForOthers()
	server := &http.Server{
		Handler:     routes,
		ReadTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, // keep-alive: a backlog comes over few connections
	}
	// What was answered 2xx is committed, so any way to stop will do.
	log.Fatal(server.Serve(listener))
}

type app struct {
	db        *sql.DB
	revisions bool // the table has the columns for them
	mu        sync.Mutex
	waiting   map[string]map[chan struct{}]bool // the open pages, by turn
}

// put stores an answer where there is none yet, or a newer one of the same file, and wakes the open
// pages of all processes. A failure is stored where there is no answer.
func (a *app) put(ctx context.Context, t *turn) (done string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	id, err := a.find(ctx, t)
	if errors.Is(err, sql.ErrNoRows) {
		return "unknown", nil // another app or a test may have asked
	}
	if err != nil {
		return "", err
	}
	var result sql.Result
	switch {
	case t.Response == nil:
		result, err = a.db.ExecContext(ctx, fail, storable(*t.Reason), id)
	case a.revisions:
		file := t.Backend + "_" + t.Persona + "_" + t.TurnID
		result, err = a.db.ExecContext(ctx, fillOrRevise, text(t), id, file, t.Revision)
	default:
		result, err = a.db.ExecContext(ctx, fill, text(t), id)
	}
	if err != nil {
		return "", err
	}
	changed, err := result.RowsAffected()
	if err != nil {
		return "", err
	}
	if changed == 0 {
		return "outranked", nil // it has an answer: this one, or one that counts more
	}
	a.wake(id)
	go a.notify(id) // it is stored, whatever becomes of this
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
func (a *app) find(ctx context.Context, t *turn) (id string, err error) {
	ids := []string{t.TurnID}
	if t.SubmittedTurnID != nil {
		ids = []string{*t.SubmittedTurnID, t.TurnID}
	}
	err = sql.ErrNoRows
	for _, id = range ids {
		if !isUUID(id) {
			continue
		}
		err = a.db.QueryRowContext(ctx, find, id).Scan(&id)
		if !errors.Is(err, sql.ErrNoRows) {
			break
		}
	}
	return id, err
}

// text gives an answer as people see it and the database takes it.
func text(t *turn) string {
	return storable(withoutTrailer(*t.Response))
}

// storable replaces U+0000, which JSON can hold and PostgreSQL would refuse for ever.
func storable(text string) string {
	return strings.ReplaceAll(text, "\x00", "\uFFFD")
}

// withoutTrailer gives the answer without the block for machines at its end.
func withoutTrailer(response string) string {
	blocks := opening.FindAllStringIndex(response, -1)
	if blocks == nil {
		return response
	}
	last := blocks[len(blocks)-1]
	before, inner := response[:last[0]], response[last[1]:]
	opened := openFence(before)
	if end := closing.FindStringIndex(inner); end != nil {
		after := inner[end[1]:]
		if first := fence.FindStringIndex(after); first != nil {
			after = after[:first[0]] + after[first[1]:] // the end of a block of code around it
		}
		if strings.TrimSpace(after) != "" {
			return response // the answer goes on: it quotes a trailer
		}
	} else if goesOn(inner, before, opened) {
		return response
	}
	if opened != nil && strings.TrimSpace(before[opened[1]:]) == "" {
		before = before[:opened[0]]
	}
	return strings.TrimRightFunc(before, unicode.IsSpace)
}

// goesOn says whether text follows a block without its closing line: behind the end of the code that
// it stands in, as its first line or behind a blank one.
func goesOn(inner, before string, opened []int) bool {
	if opened != nil {
		for _, at := range fence.FindAllStringSubmatchIndex(inner, -1) {
			if closes(inner, at, before, opened) {
				if strings.TrimSpace(fence.ReplaceAllString(inner[at[1]:], "")) != "" {
					return true
				}
				break
			}
		}
	}
	blank := false
	for _, line := range strings.Split(inner, "\n") {
		if blank && words(line) && !named(line) {
			return true
		}
		blank = strings.TrimSpace(line) == "" // and so is what is left of the opening line
	}
	return false
}

// openFence finds where a block of code begins that does not end in the text.
func openFence(text string) (opened []int) {
	for _, at := range fence.FindAllStringSubmatchIndex(text, -1) {
		if opened == nil {
			opened = at
		} else if closes(text, at, text, opened) {
			opened = nil
		}
	}
	return opened
}

func closes(text string, at []int, openedIn string, opened []int) bool {
	marks, info := text[at[2]:at[3]], text[at[4]:at[5]]
	return strings.HasPrefix(marks, openedIn[opened[2]:opened[3]]) && strings.TrimSpace(info) == ""
}

// listenForOthers wakes the open pages, from now on, when other processes store something. A notification is only
// a hint, and may be lost: with its connection, with the process that should have sent it, in a
// pooler. What counts is the row, so it is also read after each new connection and every 2 s.
func (a *app) listenForOthers() {
	listener := pq.NewDialListener(dialer{}, "application_name=paliad-listener",
		time.Second, proveEvery, func(event pq.ListenerEventType, err error) {
			if err != nil {
				log.Printf("notifications: lost: %v", err)
			} else {
				log.Print("notifications: connected")
			}
		})
	go func() { // it waits until there is a connection
		for listener.Listen("paliadin_turns") != nil {
			time.Sleep(proveEvery) // such as a standby's refusal, which ends when it is promoted
		}
	}()
	missed := make(chan struct{}, 1)
	go func() {
		for heard := range listener.Notify {
			if heard != nil {
				a.wake(heard.Extra)
				continue
			}
			select { // the connection is a new one
			case missed <- struct{}{}:
			default:
			}
		}
	}()
	go func() {
		for ticks := time.Tick(pollEvery); ; {
			select {
			case <-missed:
			case <-ticks:
			}
			a.poll()
		}
	}()
	go func() {
		for range time.Tick(proveEvery) {
			// Of no turn. A listening connection that lost its LISTEN or its server hears nothing for
			// `silence`, and is made anew.
			a.notify("")
		}
	}()
}

// poll asks the database, in one statement, about all turns that pages wait for.
func (a *app) poll() {
	a.mu.Lock()
	ids := make([]string, 0, len(a.waiting))
	for id := range a.waiting {
		ids = append(ids, id)
	}
	a.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rows, err := a.db.QueryContext(ctx, ended, pq.Array(ids))
	if err != nil {
		return // what is not found now is found by the next poll
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if rows.Scan(&id) == nil {
			a.wake(id)
		}
	}
}

// notify lets all processes know, this one too, that there is something about a turn. That it fails is no
// error: they poll.
func (a *app) notify(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a.db.ExecContext(ctx, notify, id)
}

// dialer makes connections on which nothing is awaited for longer than `silence`. What stands between
// (a proxy, a firewall) may forget a connection without closing it. Asking the server to cancel would
// only wait in turn.
type dialer struct{}

func (dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return boundedConn{conn}, nil
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

type boundedConn struct{ net.Conn }

func (c boundedConn) Read(into []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(into)
}

// wake gives notice to the open pages of this process.
func (a *app) wake(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for news := range a.waiting[id] {
		select {
		case news <- struct{}{}:
		default: // the last news is still to be taken, and then the page looks into the database
		}
	}
}

func (a *app) subscribe(id string) (news chan struct{}, leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	news = make(chan struct{}, 1)
	if a.waiting[id] == nil {
		a.waiting[id] = map[chan struct{}]bool{}
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
	news, leave := a.subscribe(id) // before the row is read: what comes after it is news
	defer leave()
	for {
		var response, errorCode sql.NullString
		err := a.db.QueryRowContext(ctx, show, id, ctx.Value(userKey{})).Scan(&response, &errorCode)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			http.NotFound(w, req)
			return
		case err != nil:
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		case response.Valid:
			w.Header().Set("Content-Type", "text/markdown; charset=utf-8")
			io.WriteString(w, response.String)
			return
		case errorCode.Valid:
			http.Error(w, "failed: "+errorCode.String, http.StatusBadGateway)
			return
		}
		select {
		case <-news: // the row says what it is
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
