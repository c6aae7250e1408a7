package h2

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// newStream makes a stream of the header fields that opened it, without the connection's lock: nobody else knows it
// yet. What makes the request malformed is an error of the stream (RFC 9113, 8.1.1).
func (c *conn) newStream(f *http2.MetaHeadersFrame) (*stream, error) {
	st := &stream{c: c, id: f.StreamID, handler: c.handler, received: c.server.cfg.StreamWindow, remoteClosed: f.StreamEnded()}
	st.body.init(st)
	header := make(http.Header, len(f.Fields))
	values := make([]string, len(f.Fields)) // one allocation for the values of all
	for i, field := range f.RegularFields() {
		key := canonical(field.Name)
		if have := header[key]; have != nil {
			header[key] = append(have, field.Value)
			continue
		}
		values[i] = field.Value
		header[key] = values[i : i+1 : i+1]
	}
	target, err := targetOf(f, header)
	if err != nil {
		return nil, streamError(f.StreamID, http2.ErrCodeProtocol, "%w", err)
	}
	st.body.expect = httpguts.HeaderValuesContainsToken(header["Expect"], "100-continue")
	if st.body.expect {
		delete(header, "Expect")
	}
	if cookies := header["Cookie"]; len(cookies) > 1 {
		header["Cookie"] = []string{strings.Join(cookies, "; ")} // they may come in crumbs
	}
	req := http.Request{
		Method: f.PseudoValue("method"), URL: target.url, RequestURI: target.uri, Host: target.host, Header: header,
		Proto: "HTTP/2.0", ProtoMajor: 2, TLS: &c.state, RemoteAddr: c.remote, Body: http.NoBody,
	}
	st.trailer, req.Trailer = announced(header)
	if st.remoteClosed {
		st.body.end(errHandlerDone)
	} else {
		req.Body, req.ContentLength = &st.body, lengthOf(header)
	}
	st.declared = req.ContentLength
	switch err := connectionFields(header); {
	case f.Truncated:
		st.handler = http.HandlerFunc(tooLong)
	case err != nil:
		st.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, err.Error(), http.StatusBadRequest)
		})
	}
	ctx, cancel := context.WithCancel(c.base)
	st.cancel = cancel
	st.request = req.WithContext(ctx)
	st.response.init(st)
	return st, nil
}

func tooLong(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "header fields too long", http.StatusRequestHeaderFieldsTooLarge)
}

// target is what a request is for.
type target struct {
	url       *url.URL
	uri, host string
}

// targetOf reads the pseudo header fields (RFC 9113, 8.3.1).
func targetOf(f *http2.MetaHeadersFrame, header http.Header) (target, error) {
	method, scheme, path := f.PseudoValue("method"), f.PseudoValue("scheme"), f.PseudoValue("path")
	t := target{uri: path, host: f.PseudoValue("authority")}
	if hosts := header["Host"]; len(hosts) > 0 {
		if len(hosts) > 1 || t.host != "" && t.host != hosts[0] {
			return t, fmt.Errorf("hosts %q and %q", t.host, hosts)
		}
		t.host = hosts[0]
		delete(header, "Host")
	}
	if strings.Contains(t.host, "@") || t.host != "" && !httpguts.ValidHostHeader(t.host) {
		return t, fmt.Errorf("authority %q", t.host)
	}
	if f.PseudoValue("protocol") != "" {
		return t, fmt.Errorf("extended CONNECT is not offered")
	}
	if method == http.MethodConnect {
		if path != "" || scheme != "" || t.host == "" {
			return t, fmt.Errorf("CONNECT to %q with a path or scheme", t.host)
		}
		t.url, t.uri = &url.URL{Host: t.host}, t.host
		return t, nil
	}
	if method == "" || scheme != "https" && scheme != "http" || path == "" || path[0] != '/' && path != "*" {
		return t, fmt.Errorf("%q of %q by %q", method, path, scheme)
	}
	var err error
	t.url, err = url.ParseRequestURI(path)
	return t, err
}

// connectionFields refuses header fields that mean something in HTTP/1.1 alone (RFC 9113, 8.2.2).
func connectionFields(header http.Header) error {
	for _, key := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade"} {
		if _, ok := header[key]; ok {
			return fmt.Errorf("request header %q is not valid in HTTP/2", key)
		}
	}
	if te := header["Te"]; len(te) > 1 || len(te) == 1 && te[0] != "trailers" && te[0] != "" {
		return fmt.Errorf(`request header "TE" may only be "trailers" in HTTP/2`)
	}
	return nil
}

// lengthOf is the declared length of a request's body, -1 when there is none, and 0 when it can't be read.
func lengthOf(header http.Header) int64 {
	declared := header["Content-Length"]
	if len(declared) == 0 {
		return -1
	}
	n, err := strconv.ParseUint(declared[0], 10, 63)
	if err != nil {
		return 0
	}
	return int64(n)
}

// announced are the trailers that a request says will come: a place for what comes, and one for the handler.
func announced(header http.Header) (arriving, shown http.Header) {
	lists := header["Trailer"]
	if lists == nil {
		return nil, nil
	}
	delete(header, "Trailer")
	arriving, shown = http.Header{}, http.Header{}
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			key := http.CanonicalHeaderKey(strings.TrimSpace(name))
			switch key {
			case "", "Transfer-Encoding", "Trailer", "Content-Length":
			default:
				arriving[key], shown[key] = nil, nil
			}
		}
	}
	return arriving, shown
}
