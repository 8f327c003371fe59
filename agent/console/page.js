// Live updates: the lane sends the parts of the page that changed, drawn by the
// same templates as the page itself. Ten seconds without a word mean trouble.
const stale = document.getElementById("stale");
const item = new URLSearchParams(location.search).get("item") ?? "";
const source = new EventSource("/api/v1/events?item=" + encodeURIComponent(item));
let heard = Date.now();

source.addEventListener("parts", (event) => {
  heard = Date.now();
  stale.hidden = true;
  for (const [id, html] of Object.entries(JSON.parse(event.data))) {
    document.getElementById(id).innerHTML = html;
  }
});

setInterval(() => {
  stale.hidden = Date.now() - heard < 15000;
}, 1000);
