package report

import (
	"fmt"
	"html"
	"strings"
	"time"
)

// The picture's measures, in pixels.
const (
	width, height         = 1200, 420
	left, right           = 60, 20
	top, bottom           = 50, 60
	plotWidth, plotHeight = width - left - right, height - top - bottom
)

// colours are of the servers in the order of their names; failures have their own.
var colours = []string{"#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#17becf", "#bcbd22", "#e377c2", "#7f7f7f", "#ff7f0e"}

const failure = "#d62728"

// plot maps seconds and requests per second to pixels.
type plot struct {
	strings.Builder
	seconds int
	most    float64
	bucket  int // seconds that one point stands for
}

// Picture is an SVG of requests per second by server, failures, and faults: grey from the fault until
// healing began, light until all was well.
func (r *Report) Picture() string {
	names, counts, failed := r.Series.take()
	p := &plot{seconds: max(1, int(r.Took/time.Second)), most: 1}
	p.bucket = max(1, p.seconds/plotWidth+1)
	lines := map[string][]float64{}
	for _, name := range names {
		lines[name] = p.points(counts[name])
	}
	failures := p.points(failed)
	fmt.Fprintf(p, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, height)
	fmt.Fprintf(p, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(p, `<text x="%d" y="16" font-size="13">Requests per second by the server that answered, seed %d</text>`+"\n", left, r.Seed)
	for _, s := range r.Strikes {
		p.band(s.At, s.Heal, "#bbbbbb", s.Title+" ("+strings.Join(s.Hit, ", ")+")")
		p.band(s.Heal, s.Well, "#eeeeee", "healing of: "+s.Title)
		if p.seconds <= 240 {
			fmt.Fprintf(p, `<text x="%.1f" y="%d" transform="rotate(90 %.1f %d)" fill="#555555" font-size="9">%s</text>`+"\n",
				p.x(s.At)+3, top+4, p.x(s.At)+3, top+4, html.EscapeString(s.Kind))
		}
	}
	p.axes()
	for i, name := range names {
		p.line(lines[name], colours[i%len(colours)])
	}
	p.line(failures, failure)
	for i, name := range append(names, "failed") {
		colour := failure
		if i < len(names) {
			colour = colours[i%len(colours)]
		}
		fmt.Fprintf(p, `<rect x="%d" y="26" width="10" height="10" fill="%s"/><text x="%d" y="35">%s</text>`+"\n",
			left+i*120, colour, left+i*120+14, html.EscapeString(name))
	}
	p.WriteString("</svg>\n")
	return p.String()
}

// points are means per second over the buckets; the highest sets the scale.
func (p *plot) points(counts []int) []float64 {
	points := make([]float64, (p.seconds+p.bucket-1)/p.bucket)
	for second, n := range counts {
		if i := second / p.bucket; i < len(points) {
			points[i] += float64(n) / float64(p.bucket)
			p.most = max(p.most, points[i])
		}
	}
	return points
}

func (p *plot) x(at time.Duration) float64 {
	return left + at.Seconds()/float64(p.seconds)*plotWidth
}

func (p *plot) y(n float64) float64 { return top + plotHeight*(1-n/p.most) }

func (p *plot) band(from, to time.Duration, colour, title string) {
	fmt.Fprintf(p, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"><title>%s</title></rect>`+"\n",
		p.x(from), top, max(0.5, p.x(to)-p.x(from)), plotHeight, colour, html.EscapeString(title))
}

func (p *plot) axes() {
	for i := range 5 {
		n := p.most * float64(i) / 4
		fmt.Fprintf(p, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n",
			left, p.y(n), width-right, p.y(n), left-6, p.y(n)+4, n)
	}
	for i := range 11 {
		at := time.Duration(p.seconds) * time.Second * time.Duration(i) / 10
		fmt.Fprintf(p, `<text x="%.1f" y="%d" text-anchor="middle">%v</text>`+"\n", p.x(at), height-bottom+18, at.Round(time.Second))
	}
}

func (p *plot) line(points []float64, colour string) {
	fmt.Fprintf(p, `<polyline fill="none" stroke="%s" stroke-width="1.2" points="`, colour)
	for i, n := range points {
		middle := time.Duration(i*p.bucket)*time.Second + time.Duration(p.bucket)*time.Second/2
		fmt.Fprintf(p, "%.1f,%.1f ", p.x(min(middle, time.Duration(p.seconds)*time.Second)), p.y(n))
	}
	p.WriteString(`"/>` + "\n")
}
