# What scdoc writes, as `mandoc -Tlint` wants it: no paragraph break beside a heading, another one or the end of an indentation,
# where it means nothing, the title in capitals, and lines of 78 bytes at most.
/^\.TH/ { $2 = toupper($2) }
/^\.P$/ { waiting = 1; next }
/^\.RE$/ { print; next }
waiting { if (!heading && !/^\.(SH|SS)/) print ".P"; waiting = 0 }
{ heading = /^\.(SH|SS|TH)/ }
/^\.nf$/ { literal = 1 }
/^\.fi$/ { literal = 0 }
literal || /^\./ || length($0) <= 78 { print; next }
{
    count = split($0, word, " ")
    line = word[1]
    for (i = 2; i <= count; i++) {
        if (length(line) + 1 + length(word[i]) > 78) { print line; line = word[i] } else line = line " " word[i]
    }
    print line
}
