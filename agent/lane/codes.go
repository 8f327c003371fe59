package lane

// Code is a stable reason code. A code never changes its meaning.
type Code string

// Against says what a code speaks about.
type Against int

const (
	// Capture: the measurement could not be made or trusted; says nothing about the goods.
	Capture Against = iota
	// Goods: speaks against the goods and may become a finding.
	Goods
)

// CodeInfo is what the lane knows of a reason code.
type CodeInfo struct {
	Against   Against
	Weight    int            // contribution to the score when it speaks alone, 0 to 100
	Recommend Recommendation // what to do about it
	Text      string         // meaning, in a few words
	Cure      string         // what the person at the lane can do
}

// Codes is the one table of reason codes: what each means and what to do. It is
// read-only.
var Codes = map[Code]CodeInfo{
	"LBL_CHECKDIGIT":   {Goods, 35, "document_check", "Check digit is wrong", "Compare the printed number with the code; scan again."},
	"LBL_CHARSET":      {Goods, 15, "rescan", "Code holds characters its standard forbids", "Scan again; check the scanner's keyboard layout."},
	"LBL_LENGTH":       {Goods, 15, "rescan", "An element is too short or too long", "Scan again: the read may be cut off."},
	"LBL_AI_UNKNOWN":   {Goods, 15, "rescan", "Unknown GS1 application identifier", "Scan again; if it stays, look at the label."},
	"LBL_DATE_ILLEGAL": {Goods, 25, "document_check", "A date on the label does not exist", "Compare with the printed date."},
	"LBL_CONFLICT":     {Goods, 45, "open_inspect", "Codes on one item contradict each other", "Compare all labels of the item."},
	"LBL_AIM_MISSING":  {Capture, 0, "none", "Scanner sends no symbology identifier", "Switch on AIM identifiers in the scanner."},

	"IMG_FEATURE_FAKE":    {Goods, 60, "open_inspect", "Known counterfeit feature present", "Open the parcel and compare with the reference."},
	"IMG_FEATURE_MISSING": {Goods, 45, "open_inspect", "Genuine feature absent", "Open the parcel and compare with the reference."},
	"IMG_LAYOUT":          {Goods, 35, "open_inspect", "Artwork differs from the genuine one", "Compare with the reference picture."},
	"IMG_COLOUR":          {Goods, 35, "open_inspect", "Colour differs from the genuine one", "Compare with the reference picture under white light."},
	"IMG_PRODUCT_OTHER":   {Goods, 45, "open_inspect", "Picture shows another product than the code names", "Open the parcel; compare code and product."},
	"IMG_QUALITY":         {Capture, 0, "rescan", "Image cannot be judged", "Take the picture again: whole pack, sharp, no glare."},
	"IMG_INCOMPLETE":      {Capture, 0, "rescan", "Image file is damaged or cut off", "Take the picture again; check the camera's network."},
	"IMG_LOSSY":           {Capture, 0, "none", "X-ray image was compressed with loss", "Set the scanner to PNG."},

	"FOR_ID_FAIL":      {Goods, 70, "lab_sample", "Forensic test did not confirm the substance", "Repeat the test; take a laboratory sample."},
	"FOR_INCONCLUSIVE": {Capture, 0, "retest", "Forensic test gave no clear result", "Repeat the test."},
	"FOR_CAL_EXPIRED":  {Capture, 0, "retest", "Instrument is out of calibration", "Calibrate the instrument and repeat the test."},

	"RISK_PROFILE": {Goods, 50, "open_inspect", "Listed on the watchlist", "Follow the note of the list."},

	"CUS_CLOCK":    {Capture, 0, "none", "A clock is wrong", "Set the device's clock."},
	"CUS_REPEAT":   {Capture, 0, "none", "Device used a message id again with other content", "Check the device's numbering."},
	"CUS_NO_QOS":   {Capture, 0, "none", "Device sends without delivery guarantee (QoS 0)", "Set the device to QoS 1."},
	"SYS_WORKER":   {Capture, 0, "rescan", "Image check could not run", "See 'inspectd status' for the vision worker."},
	"SYS_UPSTREAM": {Capture, 0, "none", "Headquarters lost what it had acknowledged", "Nothing at the lane: the events are sent again. Tell headquarters."},
	"MSG_EMPTY":    {Capture, 0, "none", "Message has no content", "Check the device."},
	"MSG_OVERSIZE": {Capture, 0, "none", "Message is larger than allowed", "Lower the device's resolution or raise limits.max_message."},
	"MSG_UNKNOWN":  {Capture, 0, "none", "No device is configured for this topic", "Add the device to the configuration."},
	"MSG_DECODE":   {Capture, 0, "none", "Message is not what the device's profile says", "Check the profile of the device in the configuration."},
}
