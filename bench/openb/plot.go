package main

import (
	"bytes"
	"fmt"
	"math"
)

// The plot's size and the frame of its axes, in pixels.
const (
	width, height            = 760, 460
	left, right, top, bottom = 60, 540, 20, 410
	fromX, toX               = 50, 130 // percent of the GPUs asked for
	fromY, toY               = 50, 100 // percent of the GPUs given away
)

var colors = []string{"#1b6ca8", "#d1495b", "#2e933c", "#999999", "#b8860b", "#7b4fa3", "#555555", "#c97b84", "#000000"}

// plot draws the GPUs allocated over the GPUs asked for: ours solid, published
// curves dashed.
func plot(ours, published []curve) []byte {
	var b bytes.Buffer
	x := func(percent float64) float64 { return left + (percent-fromX)/(toX-fromX)*(right-left) }
	y := func(percent float64) float64 { return bottom - (percent-fromY)/(toY-fromY)*(bottom-top) }
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	for p := fromX; p <= toX; p += 10 {
		fmt.Fprintf(&b, `<path d="M%.0f %d V%d" stroke="#ddd"/><text x="%.0f" y="%d" text-anchor="middle">%d</text>`+"\n", x(float64(p)), top, bottom, x(float64(p)), bottom+18, p)
	}
	for p := fromY; p <= toY; p += 5 {
		fmt.Fprintf(&b, `<path d="M%d %.0f H%d" stroke="#ddd"/><text x="%d" y="%.0f" text-anchor="end">%d</text>`+"\n", left, y(float64(p)), right, left-6, y(float64(p))+4, p)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">GPUs asked for, %% of all</text>`+"\n", (left+right)/2, bottom+38)
	fmt.Fprintf(&b, `<text x="16" y="%d" text-anchor="middle" transform="rotate(-90 16 %d)">GPUs allocated, %% of all</text>`+"\n", (top+bottom)/2, (top+bottom)/2)
	for i, c := range append(append([]curve{}, ours...), published...) {
		dash := ""
		if i >= len(ours) {
			dash = ` stroke-dasharray="5 3"`
		}
		color := colors[i%len(colors)]
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2"%s points="`, color, dash)
		for point, value := range c.allocated {
			if percent := point * step; percent >= fromX && !math.IsNaN(value) {
				fmt.Fprintf(&b, "%.1f,%.1f ", x(float64(percent)), y(value))
			}
		}
		at := top + 20*i + 10
		fmt.Fprintf(&b, `"/><path d="M%d %d h24" stroke="%s" stroke-width="2"%s/><text x="%d" y="%d">%s</text>`+"\n", right+14, at, color, dash, right+44, at+4, c.name)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
